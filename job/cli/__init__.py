"""The command line: commands, their flags, the configuration file, and what they print.

Owns: ``scoring-job`` and ``python -m job``, from ``argv`` to an exit code.
Public: ``main.main``, ``options.parse``, ``commands.COMMANDS``.
May import: everything.
"""
