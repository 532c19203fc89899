"""The reports of a night, for people and for programs: table, page, JSON, webhook.

Owns: ``_report.json`` and ``_report.html``, the line of ``--json``, and messages to a webhook.
Public: ``run_report.RunReport``, ``json_line.tell``, ``webhook.send``.
May import: ``gates`` and below. No Beam.
"""
