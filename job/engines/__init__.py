"""Engines: which one runs the pipeline, what it must be told, and how a job there ends.

Owns: Beam's pipeline options and what each runner needs. One module for each engine.
Public: ``choice.beam_options``, ``choice.fit``, ``choice.runner``.
May import: ``compare`` and below.
"""
