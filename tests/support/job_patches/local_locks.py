"""Imported by a job of a zygote: its machine is its own, and so are its locks."""

from __future__ import annotations

import pytest

from tests.support import file_locks

_patch = pytest.MonkeyPatch()
file_locks.alone(_patch)
file_locks.elsewhere(_patch)
