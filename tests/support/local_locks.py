"""Imported by a job of a zygote: its machine is its own, and so are its locks."""

from __future__ import annotations

import pytest

from tests.support import lockless

_patch = pytest.MonkeyPatch()
lockless.alone(_patch)
lockless.elsewhere(_patch)
