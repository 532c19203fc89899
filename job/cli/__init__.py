"""The command line: flags, the configuration file, commands, and what they print.

Owns: ``scoring-job`` and ``python -m job``, from ``argv`` to an exit code.
Public: ``main.main``, ``options.parse``.
May import: everything.
"""
