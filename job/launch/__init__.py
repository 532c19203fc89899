"""Launching: from a validated spec to a published night, on the machine where the command runs.

Owns: preparation (shards, model, lease, plan), checks before the first prediction, submission, many nights
by one command and the table that ``job backfill`` shows of them, and the forecast of ``job plan``.
Public: ``score.score``, ``backfill.score``, ``forecast.look``.
May import: ``pipeline``, ``engines`` and below.
"""
