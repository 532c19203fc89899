"""Binding: which columns feed which model input, values to tensors, and predictions back to Arrow.

Owns: the rules of ``--features``, ``--keys`` and ``--cast``, the types that fit, and every check of a value.
Public: ``binding.bind`` (a schema and a signature to a ``Binding``), ``binding.to_tensors`` (a record batch
to tensors and bad rows), ``predictions.to_arrow``.
May import: ``shards`` and below. No Beam, no Keras.
"""
