"""Leases that expire in less than a second. Jobs import ``job_patches.short_leases``."""

from __future__ import annotations

import pytest

from job.commit import lease

EXPIRES_S = 0.6


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Let leases of this process expire soon."""
    patch.setattr(lease, "EXPIRES_S", EXPIRES_S)
    patch.setattr(lease, "RENEW_S", EXPIRES_S / 6)
    patch.setattr(lease, "_LOOK_EVERY_S", EXPIRES_S / 20)
