"""Imported by a job of a zygote: none of its files may exceed 3,000 bytes."""

from __future__ import annotations

import resource

resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
