"""Imported by a job of a zygote: its machine is its own, and its file system has no locks."""

from __future__ import annotations

import pytest

from tests.support import file_locks

_patch = pytest.MonkeyPatch()
file_locks.without(_patch)
file_locks.elsewhere(_patch)
