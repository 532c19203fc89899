"""The commit protocol: attempt, receipt, publish.

Owns: everything on disk in an output but the predictions themselves: staging, lease, receipts, manifest,
``_SUCCESS``. ``protocol`` tells the states and the steps between them.
Public: ``protocol.publish``, ``staging.write_receipt``, ``output.look``.
May import: ``report`` and below. No Beam, no Keras.
"""
