"""Checks of the engine's workers, made of their answers to ``job.doctor.probe``."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

from job import environment, storage
from job.doctor import answer as doctor_answer
from job.engines.engine import Check
from job.errors import StorageError
from job.spec import ScoringSpec

# An engine that must start its workers first takes half a minute.
LIMIT_S: Final = 45.0
# For starting the probe before, and ending it after.
MORE_S: Final = 15.0
_PACKAGES: Final = (*(name for name, _ in environment.versions()[1:]), "cloudpickle", "dask", "distributed")
# The model's variables, and a second copy while they are read.
_MODEL_COPIES: Final = 2
_TOLD: Final = 3
_MARKED: Final = re.compile(rf"{doctor_answer.MARK}([A-Za-z0-9_=-]+):")

Answer = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What the probe brought: the workers' answers, one for each worker.

    ``wrong`` is the engine's error if there are no answers; ``overdue`` says that the time limit ended it.
    """

    answers: Sequence[Answer]
    wrong: str
    overdue: bool


@dataclass(frozen=True)
class About:
    """What workers check: paths of the model and of a shard, and the backend that must see a GPU.

    Those that are empty are not checked.
    """

    model: str
    shard: str
    gpu: str


def ask(spec: ScoringSpec, beam_args: Sequence[str], about: About, folder: str, *, limit_s: float) -> Outcome:
    """Run the probe on the engine's workers and gather their answers."""
    told = {
        "packages": _PACKAGES,
        **asdict(about),
        "weights": spec.weights,
        "folder": folder,
        "stores": asdict(spec.stores),
    }
    request = {"beam_args": list(beam_args), "told": told, "limit_s": limit_s, "debug": spec.debug}
    said = _child(json.dumps(request), limit_s + MORE_S, shown=spec.debug)
    found = {str(answer["worker"]): answer for answer in said.get("answers", ())}
    for text in _MARKED.findall(said["error"]):
        answer = json.loads(base64.urlsafe_b64decode(text))
        found[answer["worker"]] = answer
    for answer in _left_in(folder):
        found[answer["worker"]] = {**answer, "seen": True}
    wrong = "" if found or said["state"] == "DONE" else str(said.get("told") or said["error"])
    return Outcome([found[worker] for worker in sorted(found)], wrong, said["state"] == "RUNNING")


def _left_in(folder: str) -> list[dict[str, Any]]:
    with suppress(StorageError):
        # A file that is still being written has another ending.
        names = [name for name in storage.names(folder) if name.endswith(".json")]
        contents = [storage.read_bytes(storage.join(folder, name)) for name in names]
        return [json.loads(content) for content in contents if content]
    return []


def _child(request: str, limit_s: float, *, shown: bool) -> dict[str, Any]:
    child = subprocess.Popen(
        [sys.executable, "-m", "job.doctor.probe"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if shown else subprocess.DEVNULL,
        text=True,
        # A session of its own, so that workers it starts are killed with it.
        start_new_session=True,
    )
    try:
        out, _ = child.communicate(request, timeout=limit_s)
        return dict(json.loads(out))
    except subprocess.TimeoutExpired:
        return {"state": "RUNNING", "error": ""}
    except ValueError:
        return {"state": "FAILED", "error": f"the process that asks them ended with code {child.wait()}"}
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


def checks(outcome: Outcome, where: str, digest: str, model_bytes: int, limit_s: float) -> list[Check]:
    """Return the checks of the workers.

    Args:
        outcome: what the probe brought.
        where: where the workers' log is.
        digest: the model's, as read here; empty if it was not read.
        model_bytes: the model's size.
        limit_s: how long the workers had to answer.
    """
    workers = [one for one in outcome.answers if "package" in one]
    if not workers:
        return [_silent(outcome, where, limit_s)]
    names = ", ".join(one["worker"] for one in workers)
    found = [Check("workers", True, f"{len(workers)} answered: {names}")]
    fix = "put this package on the workers, see docs/engines.md"
    found.append(_about(workers, "package", "they can import it", fix))
    found.append(_versions([one for one in outcome.answers if "versions" in one]))
    able = [one for one in workers if not one["package"]]
    if not able:
        return found
    if able[0]["model"] is not None:
        found.append(_model(able, digest))
    if able[0]["input"] is not None:
        fix = "give them the launcher's path and rights"
        found.append(_about(able, "input", "they can read the first shard", fix))
    found.append(_output(able))
    if able[0]["gpu"] is not None:
        fix = "give the workers a GPU and its driver, or leave --device=gpu out"
        found.append(_about(able, "gpu", "they have one", fix))
    if any(one["memory_bytes"] for one in able):
        found.append(_memory(able, model_bytes))
    return found


def _silent(outcome: Outcome, where: str, limit_s: float) -> Check:
    fix = f"see {where}: a worker that dies when it starts leaves a job waiting without a word"
    if outcome.overdue:
        return Check("workers", False, f"no answer within {limit_s:.0f} s", fix)
    if outcome.wrong:
        return Check("workers", False, outcome.wrong, f"see {where}")
    told = "they wrote their answers where this machine does not see them"
    return Check("workers", False, told, "give an --output that all machines share")


def _about(answers: Sequence[Answer], what: str, well: str, fix: str) -> Check:
    name = f"workers: {what}"
    wrong = [f"{one['worker']}: {one[what]}" for one in answers if one[what]]
    return Check(name, False, _joined(wrong), fix) if wrong else Check(name, True, well)


def _versions(answers: Sequence[Answer]) -> Check:
    name = "workers: versions"
    here = doctor_answer.versions(_PACKAGES)
    wrong = []
    for one in answers:
        for package, found in one["versions"].items():
            ours = here.get(package)
            if ours is not None and _compared(package, found) != _compared(package, ours):
                theirs, ours = (version or "not installed" for version in (found, ours))
                wrong.append(f"{one['worker']}: {package} {theirs}, here {ours}")
    if wrong:
        return Check(name, False, _joined(wrong), "install the same on both sides, from requirements.lock")
    return Check(name, True, "the same as on this machine")


def _joined(wrong: Sequence[str]) -> str:
    """Return what is wrong as one text; of many only the first, as they are mostly the same."""
    more = len(wrong) - _TOLD
    return "; ".join([*wrong[:_TOLD], *([f"and {more} more"] if more > 0 else [])])


def _compared(package: str, found: str) -> str:
    """Return the part of a version that must be equal: for Python, all but the last number."""
    return found.rpartition(".")[0] if package == "python" else found


def _model(answers: Sequence[Answer], digest: str) -> Check:
    wrong = [f"{one['worker']}: {one['model']}" for one in answers if one["model"]]
    other = [one for one in answers if not one["model"] and digest and one["digest"] != digest]
    wrong += [f"{one['worker']}: SHA-256 {one['digest'][:12]}…, here {digest[:12]}…" for one in other]
    if wrong:
        fix = "give them the launcher's file, and for a builder the same sources"
        return Check("workers: model", False, _joined(wrong), fix)
    return Check("workers: model", True, "they read the same bytes" if digest else "they can read it")


def _output(answers: Sequence[Answer]) -> Check:
    name = "workers: output"
    fix = "give an --output that all machines share, and the workers the right to write there"
    wrong = [f"{one['worker']}: {one['output']}" for one in answers if one["output"]]
    unseen = [one for one in answers if not one["output"] and not one.get("seen")]
    wrong += [f"{one['worker']} wrote a file that is not seen here" for one in unseen]
    if wrong:
        return Check(name, False, _joined(wrong), fix)
    return Check(name, True, "they can write it, and this machine sees it")


def _memory(answers: Sequence[Answer], model_bytes: int) -> Check:
    name = "workers: memory"
    least = min((one for one in answers if one["memory_bytes"]), key=lambda one: one["memory_bytes"])
    told = f"{least['memory_bytes']:,} bytes are free on {least['worker']}, the model takes {model_bytes:,}"
    if least["memory_bytes"] < _MODEL_COPIES * model_bytes:
        return Check(name, False, told, "give the workers more memory, or run fewer of them on a machine")
    return Check(name, True, told)
