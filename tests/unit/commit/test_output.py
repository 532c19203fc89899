"""What an output holds, and who may work on it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from job.commit import protocol
from job.commit.output import check_output, damaged, lease, leftovers, published, remove_staging
from job.errors import OutputConflictError, UsageError
from tests.support.receipts import RUN_ID
from tests.unit.commit.test_protocol import NOW, staged, tree

ROOT = Path(__file__).parents[3]


def test_another_run_is_refused_and_replaced(tmp_path: Path) -> None:
    protocol.publish(*staged(tmp_path), clock=lambda: NOW)
    other = "c" * 64
    with pytest.raises(OutputConflictError, match="holds run aaaaaaaaaaaa, this is run cccccccccccc"):
        check_output(str(tmp_path), other, replace=False)
    check_output(str(tmp_path), other, replace=True)


@pytest.mark.parametrize("replacing", [False, True])
def test_files_that_no_run_wrote_are_never_touched(tmp_path: Path, replacing: bool) -> None:
    (tmp_path / "precious.parquet").write_bytes(b"x")
    with pytest.raises(
        OutputConflictError, match=r"1 file\(s\) that no run of this job wrote.*precious.parquet"
    ):
        check_output(str(tmp_path), RUN_ID, replace=replacing)


def test_leftovers(tmp_path: Path) -> None:
    assert leftovers(str(tmp_path), RUN_ID) == []
    staged(tmp_path)
    staged(tmp_path, "b" * 64)
    assert leftovers(str(tmp_path), RUN_ID) == ["b" * 64]
    remove_staging(str(tmp_path), "b" * 64)
    remove_staging(str(tmp_path), RUN_ID)
    assert tree(tmp_path) == {}
    assert not (tmp_path / "_staging").exists()


def test_files_that_readers_skip_are_nobodys_business(tmp_path: Path) -> None:
    for name in ("_notes", ".x.crc", "ds=1/_SUCCESS", "ds=1/.part.crc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    check_output(str(tmp_path), RUN_ID, replace=False)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "1",
        "{}",
        '{"run_id": 1, "files": [], "rejected_files": []}',
        '{"run_id": "x", "files": [1]}',
    ],
)
def test_a_manifest_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "_SUCCESS").touch()
    assert published(str(tmp_path)) is None
    (tmp_path / "_manifest.json").write_text(content)
    with pytest.raises(OutputConflictError, match="it is no manifest of this job"):
        published(str(tmp_path))


def test_the_same_run_without_its_success_is_named_as_that(tmp_path: Path) -> None:
    protocol.publish(*staged(tmp_path), clock=lambda: NOW)
    (tmp_path / "_SUCCESS").unlink()
    with pytest.raises(OutputConflictError, match="which is this run, but without its _SUCCESS"):
        check_output(str(tmp_path), RUN_ID, replace=False)


def test_what_became_of_published_files_is_seen(tmp_path: Path) -> None:
    protocol.publish(*staged(tmp_path), clock=lambda: NOW)
    manifest = published(str(tmp_path))
    assert manifest is not None
    assert damaged(str(tmp_path), manifest) == []
    (tmp_path / "a.parquet").write_bytes(b"of another length")
    (tmp_path / "ds=1" / "c.parquet").unlink()
    (tmp_path / "_report.json").unlink()
    assert damaged(str(tmp_path), manifest) == ["a.parquet", "ds=1/c.parquet", "_report.json"]


HOLD = """
import sys, time
from job.commit.output import lease
with lease(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_run_at_a_time_and_a_dead_owner_holds_nothing(tmp_path: Path) -> None:
    """The lease is the system's: it ends with its process, by SIGKILL too."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            with (
                pytest.raises(
                    OutputConflictError, match=rf"another run is at work on it \(process {other.pid} on"
                ),
                lease(str(tmp_path)),
            ):
                pytest.fail("two runs hold one output")
        finally:
            other.kill()
    begin = time.monotonic()
    with lease(str(tmp_path)):
        assert json.dumps(leftovers(str(tmp_path), RUN_ID)) == "[]"
    assert time.monotonic() - begin < 5
    assert not (tmp_path / "_staging").exists()


def test_a_lease_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lease(str(tmp_path)):
        1 / 0  # noqa: B018
    with lease(str(tmp_path)):
        pass


@pytest.mark.parametrize("blocked", ["", "_staging", "_staging/lease"])
def test_an_output_that_cannot_be_written_is_wrong_usage(tmp_path: Path, blocked: str) -> None:
    path = tmp_path / "out" / blocked
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(path)
    with (
        pytest.raises(UsageError, match=rf"^{tmp_path}/out/_staging.*; choose another"),
        lease(f"{tmp_path}/out"),
    ):
        pass
