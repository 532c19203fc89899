"""Input that is not there yet: waited for, so long as was asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from job import inputs, progress, storage
from job.errors import NoInputError
from job.spec import ScoringSpec, Shard
from job.together import parallel

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0


def shards(
    spec: ScoringSpec,
    announce: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Shard]:
    """Return the shards that the inputs name, as soon as there are some and every marker is there.

    ``clock`` and ``sleep`` are in seconds.

    Raises:
        NoInputError: an input matches nothing, or a marker is missing, and the time is over.
    """
    end_s = clock() + spec.wait_for_input_s
    pause_s = _FIRST_PAUSE_S
    told = False
    while True:
        try:
            return _complete(spec)
        except NoInputError as e:
            left_s = end_s - clock()
            if left_s <= 0:
                waited = f"; waited {progress.duration(spec.wait_for_input_s)} for it" if told else ""
                raise NoInputError(f"{e}{waited}") from e
            if not told:
                announce(f"{e}; waiting for it, at most {progress.duration(spec.wait_for_input_s)}")
                told = True
        sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)


def _complete(spec: ScoringSpec) -> list[Shard]:
    if not spec.input_marker:
        return inputs.list_shards(spec)
    # The files are listed again when the markers have been seen: some may have come in between.
    _check_markers(spec.input_marker, inputs.folders(spec))
    return inputs.list_shards(spec)


def _check_markers(name: str, folders: Sequence[str]) -> None:
    def is_there(folder: str) -> bool:
        return storage.describe(storage.join(folder, name)) is not None

    found = parallel(is_there, folders, name="marker")
    missing = [folder for folder, there in zip(folders, found, strict=True) if not there]
    if missing:
        others = f", nor have {len(missing) - 1:,} other folders" if missing[1:] else ""
        raise NoInputError(f"--input_marker={name}: {missing[0]} has none{others}, so it is not complete")
