"""The runbook's commands, each section after the failure that it is about."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import Template

import pyarrow as pa
import pytest

from tests.support.nights import Night, dense, features, run_cli, saved, visible
from tests.support.store_nights import until

RUNBOOK = (Path(__file__).parents[2] / "docs" / "runbook.md").read_text(encoding="utf-8")
SECTIONS = {
    title: re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    for title, text in re.findall(r"^#+ ([^\n]+)\n(.*?)(?=^## |\Z)", RUNBOOK, flags=re.DOTALL | re.MULTILINE)
}
FIRST, BEFORE, NIGHT = "2026-11-23", "2026-11-24", "2026-11-25"
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@dataclass(frozen=True)
class Site:
    """A job that is scheduled: three nights of two shards, a model, a configuration."""

    night: Night
    capfd: pytest.CaptureFixture[str]

    @property
    def config(self) -> Path:
        return self.night.folder / "job.toml"

    @property
    def output(self) -> Path:
        return self.night.output / f"ds={NIGHT}"

    def shard(self, name: str = "a", day: str = NIGHT, table: pa.Table | None = None) -> Path:
        return self.night.shard(f"ds={day}/{name}", features(40) if table is None else table, group_rows=10)

    def environment(self) -> dict[str, str]:
        run = next((path.name for path in self.output.glob("_staging/*") if len(path.name) == 64), "")
        names = {"CONFIG": str(self.config), "NIGHT": NIGHT, "FIRST": FIRST, "OUTPUT": str(self.output)}
        return {**os.environ, "PATH": PATH, **names, "RUN": run[:12]}

    def run(self, command: str, wanted: int = 0) -> str:
        """Type a command; one of the job's runs in this process, which has imported what it needs."""
        name, *args = shlex.split(Template(command).safe_substitute(self.environment()))
        if name == "scoring-job":
            code, out, err = run_cli(self.capfd, *args)
        else:
            done = subprocess.run(
                ("bash", "-euc", command), env=self.environment(), capture_output=True, text=True, check=False
            )
            code, out, err = done.returncode, done.stdout, done.stderr
        assert code == wanted, f"{command}\n{out}\n{err}"
        return out + err

    def score(self, wanted: int, *flags: str) -> str:
        return self.run(" ".join(("scoring-job score --config=$CONFIG --ds=$NIGHT", *flags)), wanted)

    def append(self, line: str) -> None:
        self.config.write_text(f"{line}\n{self.config.read_text()}")

    def follow(self, title: str) -> str:
        """Type what a section says, line by line; a comment may tell an exit code."""
        told = ""
        for line in (line for block in SECTIONS[title] for line in block.splitlines()):
            command, _, comment = line.partition("#")
            code = re.search(r"exit (\d+)", comment)
            told += self.run(command, int(code[1]) if code else 0)
        return told

    @property
    def is_there(self) -> bool:
        return (self.output / "_SUCCESS").exists()


@pytest.fixture
def site(night: Night, capfd: pytest.CaptureFixture[str]) -> Site:
    one = Site(night, capfd)
    for i, day in enumerate((FIRST, BEFORE, NIGHT)):
        for j in range(2):
            one.shard("ab"[j], day, features(40, seed=j, first_id=80 * i + 40 * j))
    model = saved(dense(), night.folder / "m.keras")
    one.config.write_text(
        f'input = "{night.input}/ds={{ds}}"\nmodel = "{model}"\noutput = "{night.output}/ds={{ds}}"\n'
        'keys = ["id"]\nsplit_rows = 10\nbatch_size = 16\n'
    )
    return one


def test_every_exit_code_has_its_section() -> None:
    from job import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if issubclass(kind, errors.JobError)} | {0}
    assert {int(title[5]) for title in SECTIONS if title.startswith("Exit ")} == codes
    tried = {title for title, _, _ in CASES} | {title for title in SECTIONS if not SECTIONS[title]}
    assert tried == SECTIONS.keys()


def published(site: Site) -> None:
    site.score(0)


def killed(site: Site) -> None:
    command = ("scoring-job", "score", f"--config={site.config}", f"--ds={NIGHT}")
    with subprocess.Popen(command, env=site.environment(), stderr=subprocess.DEVNULL) as process:
        until(lambda: any(site.output.glob("_staging/*/receipts/*/*.json")) or process.poll() is not None)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def misspelt(site: Site) -> None:
    site.append("bach_size = 16")
    assert f"{site.config}:1: bach_size" in site.score(2)
    # Mended.
    site.config.write_text(site.config.read_text().partition("\n")[2])


def late(site: Site) -> None:
    shards = {path: path.read_bytes() for path in (site.night.input / f"ds={NIGHT}").iterdir()}
    for path in shards:
        path.unlink()
    assert "no file matches" in site.score(3)
    for path, content in shards.items():
        path.write_bytes(content)


def unfit(site: Site) -> None:
    site.shard(table=features(40).drop_columns(["f2"]))
    assert "f2" in site.score(4)


def spoilt(site: Site) -> None:
    values = pa.array([None] * 30 + [0.5] * 10, pa.float32())
    site.shard(table=features(40).set_column(2, "f1", values))
    assert "--max_rejected" in site.score(5)


def refused(site: Site) -> None:
    site.append("max_rows_change = 0.4")
    site.run(f"scoring-job score --config=$CONFIG --ds={BEFORE}")
    (site.night.input / f"ds={NIGHT}" / "b.parquet").unlink()
    assert "job publish" in site.score(5)


def another(site: Site) -> None:
    site.score(0)
    site.shard(table=features(40, seed=9))
    assert "it holds run" in site.score(6)


def unreachable(site: Site) -> None:
    site.config.write_text(
        f'{site.config.read_text()}[engine]\nrunner = "PortableRunner"\njob_endpoint = "127.0.0.1:9"\n'
    )


def damaged(site: Site) -> None:
    site.score(0)
    visible(site.output)[0].unlink()
    assert "are gone or changed" in site.score(6)


def missing(site: Site) -> None:
    site.run(f"scoring-job score --config=$CONFIG --ds={BEFORE}")


CASES: list[tuple[str, Callable[[Site], None], str]] = [
    ("Runbook", published, ""),
    ("Exit 0: published, or already published", published, "80 scored"),
    ("Exit 1: storage, or something unexpected; a kill", killed, "resuming run"),
    ("Exit 2: wrong usage", misspelt, "80 scored"),
    ("Exit 3: no input", late, "already published"),
    ("Exit 4: preflight", unfit, "40 rejected"),
    ("Exit 5: too many rejected rows", spoilt, "30 rejected"),
    ("Exit 5: a gate refused", refused, "40 scored"),
    ("Exit 6: the output holds another run", another, "80 scored"),
    ("Exit 7: the engine cannot be reached", unreachable, "80 scored"),
    ("A published night is damaged", damaged, "80 scored"),
    ("Many nights are missing", missing, "2 published"),
    ("Space", killed, "removed"),
    ("Space", refused, "kept, refused"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("title", "fail", "told"), CASES, ids=[f"{title} {fail.__name__}" for title, fail, _ in CASES]
)
def test_what_the_runbook_says_helps(site: Site, title: str, fail: Callable[[Site], None], told: str) -> None:
    fail(site)
    assert told in site.follow(title)
    if title == "Space":
        assert any(site.output.glob("_staging/*/plan.jsonl")) == (fail is refused)
        return
    assert site.is_there
    assert not (site.output / "_staging").exists()
    manifest = json.loads((site.output / "_manifest.json").read_text())
    assert manifest["ds"] == NIGHT
