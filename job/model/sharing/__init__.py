"""One loaded model for all worker processes of a machine.

Owns: the process that holds the model, and the memory through which batches reach it.
Public: ``client.SharedStep`` (a predict step that asks that process), ``client.release``.
May import: ``model.signature``, ``model.kind`` and what ``model`` may.
"""
