"""Archives taken apart, damaged, put together again, and loaded where a crash can be seen."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as source:
        return {name: source.read(name) for name in source.namelist()}


def written(path: Path, content: dict[str, bytes], **kinds: Any) -> Path:
    with zipfile.ZipFile(path, "w", **kinds) as sink:
        for name, data in content.items():
            sink.writestr(name, data)
    return path


CANARY = """import pathlib, os
pathlib.Path(os.environ["CANARY"]).write_text("run")
class Evil:
    @classmethod
    def from_config(cls, config): pathlib.Path(os.environ["CANARY"]).write_text("run")
def evil(*args, **kwargs): pathlib.Path(os.environ["CANARY"]).write_text("run")
"""


LOADER = """
import json, os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
from job.model import artifact
from job.errors import ModelError
outcomes = []
for path in sys.argv[1:]:
    sys.stderr.write(path + "\\n")
    try:
        reference = artifact.resolve(path, None, trusted=False, sha256=None)
        step = artifact.opened(reference).load(reference)
        signature = step.signature()
        if signature.inputs:
            step.build(signature.inputs)
        outcomes.append("loaded")
    except ModelError as e:
        outcomes.append(f"refused {e}")
    except MemoryError as e:
        outcomes.append(f"refused {e}")
print(json.dumps(outcomes))
"""


def load_in_a_process(paths: list[Path], folder: Path) -> list[str]:
    """What becomes of archives in a process of its own; a crash or a hang names the last one on stderr."""
    (folder / "canary").mkdir(exist_ok=True)
    (folder / "canary/__init__.py").write_text(CANARY)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{folder}:{Path(__file__).parents[2]}",
        "CANARY": f"{folder}/dead",
    }
    command = [sys.executable, "-W", "ignore", "-c", LOADER, *map(str, paths)]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (folder / "dead").exists(), "code in an archive was run"
    outcomes: list[str] = json.loads(done.stdout.splitlines()[-1])
    assert len(outcomes) == len(paths)
    return outcomes


Change = Callable[[random.Random, bytearray], None]


def flip(chance: random.Random, content: bytearray) -> None:
    for _ in range(chance.choice((1, 1, 3, 20))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def truncate(chance: random.Random, content: bytearray) -> None:
    del content[chance.randrange(len(content)) :]


def splice(chance: random.Random, content: bytearray) -> None:
    start, end = sorted(chance.randrange(len(content)) for _ in range(2))
    at = chance.randrange(len(content))
    content[at:at] = content[start : min(end, start + 500)]


def cut_out(chance: random.Random, content: bytearray) -> None:
    start = chance.randrange(len(content))
    del content[start : start + chance.randrange(1, 200)]


CHANGES: tuple[Change, ...] = (flip, truncate, splice, cut_out)
ODD: list[Any] = [
    None,
    -1,
    1 << 70,
    1e308,
    "",
    "../x",
    [],
    {},
    [[]],
    True,
    {"class_name": 5},
    {"class_name": "Dense"},
]


def strange(chance: random.Random, content: bytes) -> bytes:
    """Put something odd at a random place of a configuration."""
    config = json.loads(content)
    nodes: list[Any] = [config]
    for node in nodes:
        nodes += [
            child
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
    node = chance.choice([node for node in nodes if node])
    key = chance.choice(list(node)) if isinstance(node, dict) else chance.randrange(len(node))
    node[key] = chance.choice(ODD)
    return json.dumps(config).encode()
