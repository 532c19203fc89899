"""Scoring: a split in, a receipt out, on a worker.

Owns: reading row groups, predicting batches, setting bad rows aside, writing the file of a split, and the
DoFns around these.
Public: ``worker.ScoreSplits`` (the DoFn), ``split.score_split``, ``task.ScoringTask``.
May import: ``commit`` and below.
"""
