"""``job doctor``: is everything there that a night needs?

A *check* is one line that it prints: what was found, and what to do if something is wrong. A *call* does the
work of a check, in a thread with a time limit. The *probe* is a small job on the engine that asks the
workers; an *answer* is what one worker returns.

Owns: checks of the engine, its workers, and the paths of a night, before the night.
Public: ``doctor.examine``, ``doctor.lines``.
May import: ``launch`` and below.
"""
