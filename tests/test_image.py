"""What can be said of the worker image without building it."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]


def instructions() -> list[tuple[str, str]]:
    """Name and arguments of every instruction of the Dockerfile, continuation lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", "")
    return [
        (name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)
    ]


def arguments(wanted: str) -> list[str]:
    return [rest for name, rest in instructions() if name == wanted]


def test_every_copied_path_exists_and_reaches_the_build() -> None:
    copied = [source for rest in arguments("COPY") for source in rest.split()[:-1]]
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert lines[1] == "*", "all that is not named is left out"
    assert {"job", "models", "requirements-worker.lock"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in allowed), f"{source} is hidden by .dockerignore"


def test_the_base_is_of_the_beam_and_python_that_are_locked() -> None:
    (base,) = arguments("ARG")
    (beam,) = re.findall(
        r"^apache-beam==(\S+)", (ROOT / "requirements-worker.lock").read_text(), re.MULTILINE
    )
    (python,) = re.findall(r"^PYTHON \?= python(\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert base == f"BASE_IMAGE=apache/beam_python{python}_sdk:{beam}"


def test_only_locked_versions_are_installed() -> None:
    installs = [rest for rest in arguments("RUN") if "pip install" in rest]
    assert len(installs) == 2
    assert all("--require-hashes" in rest or "--no-deps --no-build-isolation" in rest for rest in installs)


def test_the_code_comes_after_the_dependencies() -> None:
    order = [rest for name, rest in instructions() if name in {"COPY", "RUN"}]
    (locked,) = (index for index, rest in enumerate(order) if "--require-hashes" in rest)
    (code,) = (index for index, rest in enumerate(order) if rest.startswith("job "))
    assert locked < code


def test_the_worker_is_beams_boot_and_not_root() -> None:
    assert instructions()[-1] == ("ENTRYPOINT", '["/opt/apache/beam/boot"]')
    assert arguments("USER")[-1] not in {"root", "0"}
    assert int(arguments("USER")[-1]) >= 1_000


def test_the_build_fails_where_an_import_does() -> None:
    checks = [
        index for index, (name, rest) in enumerate(instructions()) if name == "RUN" and "import " in rest
    ]
    user = max(index for index, (name, _) in enumerate(instructions()) if name == "USER")
    assert checks
    assert max(checks) > user, "the imports are tried as the user who runs them"
    assert "tensorflow" in instructions()[checks[-1]][1]
