"""The reports of a night, for people and for programs: table, page, JSON, webhook.

Owns: ``_report.json`` and ``_report.html``, the line of ``--json``, and what a webhook is told (``notices``;
``webhook`` only posts it).
Public: ``run_report.RunReport``, ``notices.tell``, ``webhook.send``.
May import: ``gates`` and below. No Beam.
"""
