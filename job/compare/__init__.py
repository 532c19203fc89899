"""Published nights looked at again: two nights compared, one night verified, golden rows picked.

Owns: reading the files of a night, matching rows by key, and scoring published rows again.
Public: ``diff.diff``, ``verify.verify``, ``golden_rows.pick``.
May import: ``scoring`` and below.
"""
