"""Flink: defaults, checks of a cluster, Beam's job server, and the cluster's REST address.

Owns: all that is particular to jobs on Flink.
Public: ``engine.fill``, ``engine.checks``, ``engine.cancel``.
May import: what ``engines`` may.
"""
