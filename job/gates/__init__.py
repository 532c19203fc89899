"""Gates: may a night be published, compared with the last good one?

Owns: what each gate asks, histograms of predictions and their distance. A gate is one module with one
``gate.Gate``, listed in ``gates.GATES``.
Public: ``gates.compare`` and ``gates.refusals``, ``gate.Compared``, ``histograms.Histogram``.
May import: ``binding`` and below. No Beam.
"""
