"""Engines: which runner runs the pipeline, the options it needs, and what it can say of a job.

Owns: Beam's pipeline options and what each runner needs. An engine is one module with one ``engine.Engine``,
listed in ``choice.ENGINES``. Waiting for a job, and cancelling it, is in ``launch.submission``.
Public: ``choice.beam_options``, ``choice.engine``, ``engine.Engine``.
May import: ``compare`` and below.
"""
