"""Object stores on the loopback, each in its own process, and a proxy that makes them slow or unreliable.

- ``stores``: starts the stores, and says which environment leads a client to them.
- ``s3d``: S3, which is moto with the conditions that it lacks.
- ``gcsd``: Cloud Storage, which is fake-gcs-server (in Go) with the conditions that it lacks.
- ``proxy``: what a test asks of the proxy (delays, faults, late listings) and what it is told (counts).
- ``relay``, ``faults``, ``http1`` and ``listings``: the traffic through the proxy, in its own process.
"""
