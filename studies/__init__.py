"""What the methods are worth, measured on small models trained from scratch: `python -m studies.NAME`."""
