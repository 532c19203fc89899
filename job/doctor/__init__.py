"""``job doctor``: is everything there that a night needs?

Owns: checks of the engine, its workers, and the paths of a night, before the night.
Public: ``doctor.examine``, ``doctor.lines``.
May import: ``launch`` and below.
"""
