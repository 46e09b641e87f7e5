"""Studies: what the methods are worth, measured on small models from scratch. Each is a module: `python -m studies.NAME`."""
