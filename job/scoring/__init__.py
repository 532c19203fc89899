"""Scoring: a split in, a receipt out, on a worker.

A split is some whole row groups of one shard. A receipt says what became of its rows, and which file holds
their predictions.

Owns: reading row groups, predicting batches, setting bad rows aside, writing the file of a split, and the
DoFns around these.
Public: ``worker.ScoreSplits`` (the DoFn), ``split.score_split``, ``task.ScoringTask``.
May import: ``commit`` and below.
"""
