"""What can be said of the images without building them; those that can be are in ``test_built_image``."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.unit.test_repository import pins

ROOT = Path(__file__).parents[2]
WORKERS = ("worker-cpu", "worker-gpu")
TARGETS = (*WORKERS, "launcher")


def instructions() -> list[tuple[str, str]]:
    """Name and arguments of every instruction of the Dockerfile, continuation lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", "")
    return [
        (name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)
    ]


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """What each stage builds on, and its own instructions."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    for name, rest in instructions():
        if name == "FROM":
            below, _, called = rest.partition(" AS ")
            found[called] = (below, [])
        elif found:
            found[called][1].append((name, rest))
    return found


def target(name: str) -> list[tuple[str, str]]:
    """Every instruction that makes a target, from its base image on."""
    below, own = stages()[name]
    return [*(target(below) if below in stages() else []), *own]


def arguments(wanted: str, among: list[tuple[str, str]]) -> list[str]:
    return [rest for name, rest in among if name == wanted]


def test_the_targets_are_those_of_the_docs() -> None:
    assert set(TARGETS) < set(stages())
    text = (ROOT / "docs" / "images.md").read_text()
    assert set(re.findall(r"--target[= ](\S+)", text)) == set(TARGETS)


def test_every_copied_path_exists_and_reaches_the_build() -> None:
    copied = [source for rest in arguments("COPY", instructions()) for source in rest.split()[:-1]]
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert lines[1] == "*", "all that is not named is left out"
    assert {"job", "LICENSE", *(path.name for path in ROOT.glob("requirements-worker*.lock"))} <= set(copied)
    unused = {path for path in allowed if path not in copied and not path.startswith("deploy/")}
    assert not unused, "what no stage copies stays out"
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in allowed), f"{source} is hidden by .dockerignore"


def test_the_base_is_of_the_beam_and_python_that_are_locked() -> None:
    (base,) = arguments("ARG", instructions())
    (python,) = re.findall(r"^PYTHONS := python(\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    beam = pins("requirements-worker.lock")["apache-beam"]
    assert base == f"BASE_IMAGE=apache/beam_python{python}_sdk:{beam}"
    outside = {below for below, _ in stages().values()} - stages().keys()
    assert outside == {"${BASE_IMAGE}"}, "one argument pins all that comes from elsewhere"


@pytest.mark.parametrize("name", TARGETS)
def test_only_locked_versions_are_installed(name: str) -> None:
    installs = [rest for rest in arguments("RUN", target(name)) if "pip install" in rest]
    locked = [rest for rest in installs if "--require-hashes" in rest]
    assert len(locked) == (1 if name == "worker-cpu" else 2)
    assert [rest for rest in installs if rest not in locked and "--no-deps --no-build-isolation" in rest]
    assert len(installs) == len(locked) + 1


@pytest.mark.parametrize("name", TARGETS)
def test_the_code_comes_after_the_dependencies(name: str) -> None:
    order = [rest for name, rest in target(name) if name in {"COPY", "RUN"}]
    locked = [index for index, rest in enumerate(order) if "--require-hashes" in rest]
    (code,) = (index for index, rest in enumerate(order) if rest.startswith("job "))
    assert max(locked) < code


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_runs_as_root(name: str) -> None:
    assert int(arguments("USER", target(name))[-1]) >= 1_000


def test_a_worker_is_beams_boot_and_the_launcher_the_command() -> None:
    for name in WORKERS:
        assert arguments("ENTRYPOINT", target(name)) == ['["/opt/apache/beam/boot"]']
    assert arguments("ENTRYPOINT", target("launcher"))[-1] == '["python", "-m", "job"]'


def test_all_are_made_by_the_same_steps() -> None:
    assert stages()["worker-gpu"][1] == stages()["worker-cpu"][1]
    # But for what it tries to import, and for how it is started.
    assert stages()["launcher"][1][:-3] == stages()["worker-cpu"][1][:-2]


@pytest.mark.parametrize("name", TARGETS)
def test_the_build_fails_where_an_import_does(name: str) -> None:
    made = target(name)
    checks = [index for index, (name, rest) in enumerate(made) if name == "RUN" and "import " in rest]
    user = max(index for index, (name, _) in enumerate(made) if name == "USER")
    assert checks
    assert max(checks) > user, "the imports are tried as the user who runs them"
    assert {"tensorflow", "keras", "job"} <= set(re.findall(r"\w+", made[checks[-1]][1]))
