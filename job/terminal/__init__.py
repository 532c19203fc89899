"""What a person sees while a command runs: results, progress, messages, and how signals end it.

Owns: standard output and standard error, the log levels of other libraries, and SIGINT and SIGTERM.
Public: ``console.show``, ``progress.Progress``, ``logging.hush``, ``signals.raise_for``.
May import: ``errors``, ``spec``, ``secrets``, ``storage``.
"""
