"""Models: which one, whether it may be trusted, how it is loaded, and the predict step.

Owns: references and digests, the check of archives, Keras and SavedModel steps, the loaded model of a
process, its batch size and its device. The only package that imports Keras or TensorFlow. A kind of model is
one module with one ``kind.Kind``, listed in ``artifact.KINDS``.
Public: ``artifact.resolve`` (a flag to a reference), ``loading.acquire`` (a reference to a loaded model),
``signature.Signature`` (what a model takes and gives).
May import: ``terminal`` and below.
"""
