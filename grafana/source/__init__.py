"""The dashboards, as Python: `python -m grafana.source` writes grafana/dashboards/, `--check` says what is stale.

`query` has the shapes of our questions to Prometheus, `style` what each colour means, `panels` one way to show each
kind of thing, `page` the frame that all dashboards share; every other module is one dashboard.
"""
