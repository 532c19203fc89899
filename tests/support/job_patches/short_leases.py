"""Imported by a job of a zygote: its leases expire in less than a second."""

from __future__ import annotations

import pytest

from tests.support import short_leases

short_leases.shorten(pytest.MonkeyPatch())
