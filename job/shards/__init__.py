"""Shards: which files an input names, the dates in paths, and how shards are cut into splits.

Owns: listing, Hive folders, placeholders such as ``{ds}``, footers, the names of
output files, and waiting for input that is late.
Public: ``inputs.list_shards``, ``inputs.read_footers``, ``planner.plan``.
May import: ``model`` and below. No Beam.
"""
