"""Studies: what the methods are worth, on small models from scratch. Each is a module: `python -m studies.NAME`."""
