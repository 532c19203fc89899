"""Score Parquet feature shards with a Keras model, nightly, complete, right and once."""

__version__ = "0.1.0"
