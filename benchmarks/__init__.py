"""Measurements of the job against a hand-tuned loop without Beam; ``python -m benchmarks.run``."""
