"""How numbers get from an upstream to the page: types, fetching, mapping, totals, polling, the board."""
