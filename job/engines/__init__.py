"""Engines: which runner runs the pipeline, the options it needs, and how a job on it ends.

Owns: Beam's pipeline options and what each runner needs. An engine is one module with one ``engine.Engine``,
listed in ``choice.ENGINES``.
Public: ``choice.beam_options``, ``choice.engine``, ``engine.Engine``.
May import: ``compare`` and below.
"""
