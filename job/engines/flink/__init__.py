"""Flink: default options, checks of the cluster, Beam's job server, and the cluster's REST API.

Owns: everything that only jobs on Flink need.
Public: ``engine.Flink``.
May import: what ``engines`` may.
"""
