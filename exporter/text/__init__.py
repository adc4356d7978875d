"""The exposition formats: strict parsing, reading by difference, rendering."""
