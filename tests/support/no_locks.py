"""Imported by a job of a zygote: its machine is its own, and its file system has no locks."""

from __future__ import annotations

import pytest

from tests.support import lockless

_patch = pytest.MonkeyPatch()
lockless.without(_patch)
lockless.elsewhere(_patch)
