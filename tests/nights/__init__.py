"""Whole nights on the embedded engine, from the command line to the published files."""
