"""The terminal: results, progress, messages, the noise of libraries, and the signals that end a command.

Owns: standard output and standard error, the log levels of other libraries, and SIGINT and SIGTERM.
Public: ``console.show``, ``progress.say``, ``progress.shown``, ``library_output.hush``,
``signals.on_sigterm``.
May import: ``errors``, ``spec``, ``secrets``, ``storage``.
"""
