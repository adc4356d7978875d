"""What the exporter answers over HTTP: metrics, health, reload and a page for people."""
