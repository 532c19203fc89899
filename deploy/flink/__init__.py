"""A Flink cluster on this machine, from the distribution on the Python package index: no Docker, no image."""
