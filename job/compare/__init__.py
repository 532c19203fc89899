"""Published nights looked at again: two nights compared, one night verified.

Owns: reading the files of a night, matching rows by key, and scoring published rows again.
Public: ``diff.diff``, ``verify.verify``; ``verify.sample`` and ``rescoring.PublishedRows`` for ``golden``.
May import: ``scoring`` and below.
"""
