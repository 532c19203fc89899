"""The package as other people's programs have it: installed from its wheel, far from this repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.nights import dense, saved

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the checkout stays clean."""
    project = tmp_path_factory.mktemp("project")
    for name in ("pyproject.toml", "setup.py", "LICENSE"):
        shutil.copy(ROOT / name, project)
    # The examples lie beside it, as in the checkout.
    for package in ("job", "models"):
        shutil.copytree(ROOT / package, project / package, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir=dist", "."], cwd=project, check=True, capture_output=True)
    (built,) = (project / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the wheel, and with what it depends on from the environment of the tests."""
    home = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True, capture_output=True)
    python = home / "bin" / "python"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        str(wheel),
    ]
    # What lies on a path of the tests' own counts as installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(pip, check=True, capture_output=True, env=environment)
    (installed,) = home.glob("lib/python*/site-packages")
    # A folder that is added so has none of its own .pth files read, and so no checkout.
    (installed / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder with what the page's examples read."""
    for day in (1, 2):
        path = tmp_path / f"features/ds=2013-12-0{day}/part.parquet"
        path.parent.mkdir(parents=True)
        values = np.random.default_rng(day).random((2, 50))
        table = {"id": np.arange(50) + 50 * day, "a": values[0], "b": values[1]}
        pq.write_table(pa.table(table), path)
    saved(dense(2), tmp_path / "model.keras")
    return tmp_path


def ran(command: list[str | Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_is_the_package_and_nothing_beside_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("/METADATA"))
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"job", "scoring_job"}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "job").rglob("*.py")}
    assert modules | {"job/py.typed"} == {name for name in names if name.startswith("job/")}
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    for line in ("License-Expression: Apache-2.0", "Classifier: Typing :: Typed", "Project-URL: Homepage, "):
        assert line in metadata


def test_every_example_of_the_page_works_outside_the_repository(python: Path, outside: Path) -> None:
    assert len(BLOCKS) == 7
    numbered = "\n".join(
        f"print('example {number}')\nexec({block!r}, {{'__name__': '__main__'}})"
        for number, block in enumerate(BLOCKS)
    )
    places = "import importlib.util, job; print(job.__file__, importlib.util.find_spec('models'))\n"
    (outside / "mine.py").write_text(places + numbered)
    done = ran([python, "mine.py"], outside)
    assert done.returncode == 0, done.stderr
    first, *told = re.split(r"example \d\n", done.stdout)
    assert first == f"{next(python.parents[1].glob('lib/python*'))}/site-packages/job/__init__.py None\n"
    score, transform, batches, rows, errors, found, report = told
    assert score == "100 rows now\n"
    assert transform == f"100 rows are at {outside}/weekly\n"
    assert batches.splitlines() == ["50 predictions ['prediction']"] * 2
    assert rows.startswith("{'prediction': [")
    assert errors.startswith("nothing was scored: ")
    assert "name" in errors
    assert found.startswith("NoInputError ")
    assert "nowhere" in found
    assert report.startswith("100 of 100 rows, 0 rejected: ()\n")
    for folder in ("predictions", "weekly"):
        published = pq.read_table(outside / folder)
        assert sorted(published.column("id").to_pylist()) == list(range(50, 150))
    assert not (outside / "by_name" / "_SUCCESS").exists()


USER = """
from job import JobError, KerasModelHandler, ScoreParquet, find_error, make_spec, score

try:
    rows = score(make_spec(input="features", model="model.keras", output="out")).report.rows_scored
except JobError as error:
    reveal_type(error.exit_code)
    raise
reveal_type(rows)
reveal_type(find_error(ValueError()))
handler = KerasModelHandler("model.keras", keys=["id"])
night = ScoreParquet(input="features", model="model.keras", output="out")
score("features")
from job import nothing
"""


def test_a_type_checker_knows_what_is_public(python: Path, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER)
    mypy: list[str | Path] = [sys.executable, "-m", "mypy", "--strict", f"--python-executable={python}"]
    done = ran([*mypy, "user.py"], tmp_path)
    told = [line.partition(": ")[2] for line in done.stdout.splitlines()]
    assert told[:-1] == [
        'note: Revealed type is "int"',
        'note: Revealed type is "int"',
        'note: Revealed type is "job.errors.JobError | None"',
        'error: Argument 1 to "score" has incompatible type "str"; expected "ScoringSpec"  [arg-type]',
        'error: Module "job" has no attribute "nothing"  [attr-defined]',
    ], done.stdout + done.stderr
