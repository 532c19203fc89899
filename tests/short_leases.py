"""Leases that expire in a second. A zygote that imports this has jobs with such leases."""

from __future__ import annotations

import pytest

from job import leases

EXPIRES_S = 1.0


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Let this process's leases expire soon."""
    patch.setattr(leases, "EXPIRES_S", EXPIRES_S)
    patch.setattr(leases, "RENEW_S", EXPIRES_S / 6)
    patch.setattr(leases, "_LOOK_EVERY_S", EXPIRES_S / 20)
