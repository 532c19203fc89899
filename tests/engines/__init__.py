"""Nights on other engines: Flink, Dask, Prism, worker pools, and a stand-in for Dataflow."""
