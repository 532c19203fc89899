"""Nights, leases and single requests in real S3 and Cloud Storage servers on this machine."""
