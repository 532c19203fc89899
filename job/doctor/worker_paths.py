"""The paths of a night, checked on a worker: can it read the model and the input, and write the output?"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from job import environment, storage
from job.errors import JobError, StorageError, one_line
from job.model import artifact, devices
from job.shards import planner
from job.spec import StoreOptions
from job.storage import objects

# By the folder for answers. The engine may ask the same process several times.
_answers: Final[dict[str, dict[str, Any]]] = {}


def find(told: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return a worker's answer: ``about`` it, completed with what it finds at the paths in ``told``.

    ``model``, ``input``, ``gpu`` and ``output`` say what is wrong with each: "" if nothing is, ``None`` if it
    was not asked for. ``digest`` is the model's. The answer is also written below staging, which is the check
    of ``output``.
    """
    folder = str(told["folder"])
    if folder in _answers:
        return _answers[folder]
    objects.configure(StoreOptions(**told["stores"]))
    found: dict[str, Any] = {**about, "memory_bytes": environment.memory_bytes(), "digest": "", "output": ""}

    def read_model() -> None:
        found["digest"] = artifact.digest(told["model"], told["weights"])

    def read_shard() -> None:
        info = storage.describe(told["shard"])
        if info is None:
            raise StorageError(f"{told['shard']}: there is no such file")
        planner.read_footer(planner.shard_of(info))

    def write() -> None:
        storage.make_folder(folder)
        path = storage.join(folder, f"{found['worker']}.json")
        storage.write_atomic(path, json.dumps(found).encode(), durable=False)

    found["model"] = _wrong(read_model) if told["model"] else None
    found["input"] = _wrong(read_shard) if told["shard"] else None
    found["gpu"] = _wrong(lambda: devices.check_gpu(told["gpu"])) if told["gpu"] else None
    found["output"] = _wrong(write)
    _answers[folder] = found
    return found


def _wrong(act: Callable[[], None]) -> str:
    try:
        act()
    except JobError as e:
        return str(e)
    except Exception as e:  # noqa: BLE001 - any error is part of the answer
        return one_line(e)
    return ""
