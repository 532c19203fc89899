"""Imported by a job of a zygote: no clock goes on while its machine stands still."""

from __future__ import annotations

import pytest

from tests.support import lockless

_patch = pytest.MonkeyPatch()
lockless.standing_still(_patch)
