"""engines/flink."""
