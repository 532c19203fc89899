"""The shape of the repository: how large functions may grow, what files may say, what is declared.

Who may import whom is import-linter's, see ``pyproject.toml``.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]

SLOW_IMPORTS = {"apache_beam", "keras", "tensorflow"}
LOCAL = {"job", "models", "benchmarks"}
DISTRIBUTION = {
    "apache_beam": "apache-beam",
    "google": "protobuf",
    "ml_dtypes": "ml-dtypes",
}
# Modules of an extra of their own.
EXTRAS = {
    "job/storage/s3.py": "s3",
    "job/storage/gcs.py": "gcs",
    "job/cli/commands/completion.py": "completion",
    "job/engines/dask.py": "dask",
    "job/compare/pairing.py": "diff",
    "job/model/devices.py": "jax",
}
FUNCTION_LINES = 50


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def imported(tree: ast.AST) -> Iterator[str]:
    """Every imported module by its full dotted name; ``from job import spec`` gives ``job.spec``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


JOB = sources("job")
LIMITED = sources("job", "models", "benchmarks", "tests")


def test_imports_are_found_in_both_forms() -> None:
    tree = ast.parse("import job.spec\nfrom job import errors\nfrom job.model import load\nimport os.path")
    assert list(imported(tree)) == ["job.spec", "job.errors", "job.model.load", "os.path"]


@pytest.mark.parametrize("path", LIMITED, ids=names(LIMITED))
def test_functions_stay_small(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < FUNCTION_LINES, node.name


@pytest.mark.parametrize("module", ["job.cli.main", "job.__main__"])
def test_help_does_not_wait_for_slow_imports(module: str) -> None:
    program = f"import sys, {module}; print(sorted({SLOW_IMPORTS} & set(sys.modules)))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def committed() -> list[Path]:
    """Files that are, or will be, under version control."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_registry_or_a_machine() -> None:
    # Put together from pieces, or this file would be the first one found.
    forbidden = re.compile("|".join(["py" + r"pi\.", "pythonhosted" + r"\.", "/" + "work/", "/" + "root/"]))
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in committed()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if forbidden.search(line)
    ]
    assert len(committed()) > 10
    assert not found, "\n".join(found)


def project() -> dict[str, list[str]]:
    """Names of the direct dependencies, normalised, by group; ``""`` is the run-time group."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": table["dependencies"], **table["optional-dependencies"]}
    pattern = re.compile(r"[A-Za-z0-9._-]+")
    return {
        group: [match.group().lower().replace("_", "-") for line in lines if (match := pattern.match(line))]
        for group, lines in groups.items()
    }


def pins(lock: str, python: str = "3.11.0") -> dict[str, str]:
    """The versions that a lock file gives a Python on Linux; that of the images where it is left out."""
    found = re.findall(
        r"^([a-z0-9._-]+)==(\S+)(?: ; (.+))? \\$", (ROOT / lock).read_text(), flags=re.MULTILINE
    )
    there = {
        "python_full_version": python,
        "python_version": python.rpartition(".")[0],
        "sys_platform": "linux",
    }
    return {name: pin for name, pin, marker in found if not marker or Marker(marker).evaluate(there)}


def test_every_direct_dependency_is_pinned() -> None:
    groups = project()
    assert {name for group in groups.values() for name in group} <= set(pins("requirements.lock"))
    assert set(groups[""]) <= set(pins("requirements-worker.lock"))


def test_the_worker_gets_the_versions_that_were_tested() -> None:
    worker, tested = pins("requirements-worker.lock"), pins("requirements.lock")
    assert worker.items() <= tested.items()
    # With a GPU the same, and CUDA's libraries.
    more = dict(pins("requirements-worker-gpu.lock").items() - worker.items())
    assert worker.items() <= pins("requirements-worker-gpu.lock").items()
    assert {name.partition("-")[0] for name in more} == {"nvidia"}


@pytest.mark.parametrize("lock", sorted(path.name for path in ROOT.glob("*.lock")))
def test_every_pin_has_hashes_and_nothing_else(lock: str) -> None:
    lines = [line for line in (ROOT / lock).read_text().splitlines() if not line.startswith("#")]
    allowed = re.compile(r"[a-z0-9._-]+==\S+( ; [^;#@]+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?")
    assert [line for line in lines if not allowed.fullmatch(line)] == []
    assert len(pins(lock)) > 40


def test_the_lock_serves_every_python_that_is_declared() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    classified = {found[1] for one in table["classifiers"] if (found := re.search(r":: (3\.\d+)$", one))}
    allowed = SpecifierSet(table["requires-python"])
    assert {f"3.{minor}" for minor in range(30) if f"3.{minor}.0" in allowed} == classified
    # Versions differ only where a package has none for both.
    locked = [pins("requirements.lock", f"{python}.0") for python in sorted(classified)]
    other = {name for one in locked for name, _ in one.items() ^ locked[0].items()}
    assert other == {"google-apitools", "importlib-metadata", "lazy-importer", "zipp"}


def extra_of(path: Path) -> str:
    return EXTRAS.get(path.relative_to(ROOT).as_posix(), "")


@pytest.mark.parametrize("path", JOB + sources("models"), ids=names(JOB + sources("models")))
def test_every_import_is_declared(path: Path) -> None:
    groups = project()
    extra = "demo" if path.parts[-2] == "models" else extra_of(path)
    declared = {*groups[""], *groups[extra]}
    used = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}
    third_party = used - LOCAL - set(sys.stdlib_module_names)
    # Google's packages share one name.
    google = {"google": "google-cloud-storage"} if extra_of(path) == "gcs" else {}
    assert {{**DISTRIBUTION, **google}.get(name, name) for name in third_party} <= declared
