"""Gates: may a night be published, compared with the last good one?

The comparison itself is here (``gates.compare``). ``job.commit.baseline`` finds the last good night, calls it
when a night is to be published, and keeps what a gate refuses.

Owns: what each gate asks, histograms of predictions and their distance. A gate is one module with one
``gate.Gate``, listed in ``gates.GATES``.
Public: ``gates.compare`` and ``gates.refusals``, ``gate.Compared``, ``histograms.Histogram``.
May import: ``binding`` and below. No Beam.
"""
