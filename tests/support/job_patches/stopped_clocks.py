"""Imported by a job of a zygote: no clock goes on while its machine stands still."""

from __future__ import annotations

import pytest

from tests.support import file_locks

_patch = pytest.MonkeyPatch()
file_locks.standing_still(_patch)
