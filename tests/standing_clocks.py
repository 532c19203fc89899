"""Imported by a job of a zygote: no clock goes on while its machine stands still, and nothing is renewed."""

from __future__ import annotations

import pytest

from job import leases

_patch = pytest.MonkeyPatch()
_patch.setattr(leases.Moment, "passed_s", property(lambda moment: 0.0 if moment.boot_s > 0 else 1e9))
_patch.setattr(leases, "RENEW_S", 1e6)
