"""Imported by a zygote: the leases of its jobs expire in less than a second."""

from __future__ import annotations

import pytest

from tests import short_leases

short_leases.shorten(pytest.MonkeyPatch())
