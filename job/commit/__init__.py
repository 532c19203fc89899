"""The commit protocol: attempt, receipt, publish.

An attempt is the staged output file of one try at a split. A receipt says that a split is done, and which
attempt counts. To publish is to move the attempts that count to their final names and write ``_SUCCESS``.

Owns: everything on disk in an output but the predictions themselves: staging, lease, receipts, manifest,
``_SUCCESS``. ``protocol`` tells the states and the steps between them.
Public: ``protocol.publish``, ``staging.write_receipt``, ``output.look``, ``output.lease``.
May import: ``report`` and below. No Beam, no Keras.
"""
