"""Every command of the README is run, in order, in a copy of the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.jobs import Zygote

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory, warm: Zygote) -> Path:
    folder = tmp_path_factory.mktemp("clone")
    for name in ("job", "models", "Makefile", "pyproject.toml", "setup.py", "requirements.lock"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, folder / name)
    # The environment that runs this test, under the name that the README gives it.
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for program in Path(sys.prefix, "bin").iterdir():
        (programs / program.name).symlink_to(program)
    # All that TensorFlow and Beam cost when they are imported has been paid there.
    (programs / "python").unlink()
    (programs / "python").symlink_to(warm.python)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_command_of_the_readme_works(copy: Path) -> None:
    ran = []
    for language, block in BLOCKS:
        # -o: the environment is there; nothing may be installed into it from a copy.
        text = block.replace("make demo", "make -o .venv/.installed demo")
        command = (
            ["bash", "-euo", "pipefail", "-c", text] if language == "sh" else [sys.executable, "-c", text]
        )
        done = subprocess.run(
            command, cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        ran.append(done.stdout)
    assert len(ran) >= 5
    demo = ran[0]
    assert "27,110 scored of 27,110 read, 0 rejected" in demo
    error = re.search(r"mean absolute error ([\d.]+) minutes", demo)
    assert error
    assert float(error[1]) < 13
    assert any(out.strip() == "27110" for out in ran)


def test_the_readme_shows_what_the_demo_prints() -> None:
    shown = re.search(r"```text\n(rows .*?)```", README, flags=re.DOTALL)
    assert shown
    for line in ("27,110 scored of 27,110 read, 0 rejected", "31 shards in 31 splits", "mean absolute error"):
        assert line in shown[1]


def test_every_file_that_the_readme_names_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_flag_that_the_readme_names_exists() -> None:
    from job.cli.commands import COMMANDS

    # As each command tells of itself.
    known = {
        flag
        for command in COMMANDS.values()
        for flag in re.findall(r"--[a-z]\w+", command.parser().format_help())
    }
    beam = {"--direct_running_mode", "--direct_num_workers", "--setup_file", "--dask_client_address"}
    others = {"--features", "--output"}  # of the models' own commands
    assert set(re.findall(r"--[a-z]\w+", README)) <= known | beam | others
