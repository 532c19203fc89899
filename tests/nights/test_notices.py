"""What is told of several nights, and of one that was submitted."""

from __future__ import annotations

import json
import os
from contextlib import suppress

import pytest

from job.commit.handover import Job
from job.errors import DataError
from job.report import notices
from tests.support.nights import Night, dense, features, run_cli, saved
from tests.support.servers.scripted import Answer, answering
from tests.unit.report.test_notices import FIELDS
from tests.unit.report.test_run_report import REPORT


def test_several_nights_are_told_each_and_together() -> None:
    clock = iter([100.0, 103.0, 103.5, 104.0]).__next__
    ended = notices.begin("backfill", ["--start=2026-01-01", "--s3_secret_access_key=ab"], {}, 99.0)
    with notices.night("/data/out", "2026-01-01", clock) as night:
        night.ends(REPORT, None, already_published=False)
    with suppress(DataError), notices.night("rel", "2026-01-02", clock):
        notices.note_run(os.path.abspath("rel"), "cd" * 32)
        raise DataError("3 of 4 rows\nare bad")
    told = ended.fields(None, 5, 110.25)
    first, second = told["nights"]
    assert (first["status"], first["ds"], first["rows"], first["seconds"]) == (
        *("published", "2026-01-01", 1_730, 3.0),
    )
    assert (second["status"], second["exit_code"], second["error"]) == ("failed", 5, "3 of 4 rows are bad")
    assert (second["run_id"], second["output"]) == ("cd" * 32, os.path.abspath("rel"))
    assert second["started"] == "1970-01-01T00:01:43.500Z"
    assert [*told] == [*FIELDS, "nights"]
    assert (told["status"], told["exit_code"], told["rows"], told["rejected"]) == ("failed", 5, 1_730, 20)
    assert (told["seconds"], told["error"], told["ds"]) == (11.25, "3 of 4 rows are bad", None)
    assert told["flags"] == ["--start=2026-01-01", "--s3_secret_access_key=***"]
    lines = notices.text(told).splitlines()
    assert lines[0].startswith(
        "scoring 2026-01-01: published, 1,730 rows, 20 rejected, 3 s → /data/out (run "
    )
    assert lines[1].startswith("scoring 2026-01-02: failed, exit 5 → ")
    assert len(lines) == 2


def test_a_job_that_was_submitted_is_told_with_its_place() -> None:
    ended = notices.begin("score", [], {}, 0.0)
    with notices.night("gs://b/out", "2026-01-01", lambda: 1.0) as night:
        job = Job("ab" * 32, "DataflowRunner", "7", "https://c/7", "where to ask")
        night.ends(None, job, already_published=False)
    told = ended.fields(None, 0, 2.0)
    assert (told["status"], told["run_id"], told["output"]) == ("submitted", "ab" * 32, "gs://b/out")
    assert told["job"] == {"engine": "DataflowRunner", "id": "7", "link": "https://c/7"}


def test_a_backfill_is_told_night_by_night(night: Night, capfd: pytest.CaptureFixture[str]) -> None:
    for i in (1, 2):
        night.shard(f"ds=2026-01-0{i}/a", features(30, seed=i))
    bad = features(30)
    night.shard("ds=2026-01-03/a", bad.set_column(1, "f0", [[None] * 30]).cast(bad.schema))
    model = saved(dense(), night.folder / "m.keras")
    paths = (f"--input={night.input}/ds={{ds}}", f"--output={night.output}/{{ds}}", f"--model={model}")
    with answering(lambda _: Answer()) as hook:
        more = ("--keys=id", "--json", f"--notify_url={hook.endpoint}/secret-path", "--end=2026-01-04")
        assert run_cli(capfd, "backfill", "--start=2026-01-01", "--end=2026-01-01", *paths, *more[:2])[0] == 0
        code, out, err = run_cli(capfd, "backfill", "--start=2026-01-01", *paths, *more)
    assert (code, out.count("\n")) == (1, 1), err
    told = json.loads(out)
    assert [*told] == [*FIELDS, "nights"]
    assert (told["command"], told["status"], told["exit_code"], told["rows"]) == ("backfill", "failed", 1, 60)
    ends = [(one["ds"], one["status"], one["exit_code"], one["rows"]) for one in told["nights"]]
    assert ends == [
        ("2026-01-01", "already_published", 0, 30),
        ("2026-01-02", "published", 0, 30),
        ("2026-01-03", "failed", 5, None),
        ("2026-01-04", "failed", 3, None),
    ]
    before, done, spoilt, absent = told["nights"]
    for one in told["nights"]:
        assert one["output"] == f"{night.output}/{one['ds']}"
    manifest = json.loads((night.output / "2026-01-02" / "_manifest.json").read_text())
    assert (done["run_id"], done["loads"], done["error"]) == (manifest["run_id"], 1, None)
    # One load has served every night that was scored now.
    assert told["loads"] == 1
    assert done["started"] < done["ended"]
    assert (before["started"], before["seconds"]) == (None, None)
    assert (night.output / "2026-01-03" / "_staging" / spoilt["run_id"]).is_dir()
    assert absent["run_id"] is None
    (asked,) = hook.asked
    text = json.loads(asked.body)["text"].splitlines()
    assert [line.split(",")[0] for line in text] == [
        "scoring 2026-01-01: already published",
        "scoring 2026-01-02: published",
        "scoring 2026-01-03: failed",
        "scoring 2026-01-04: failed",
    ]
    # For people, the table, where it is not in the way.
    assert "4 nights" in err
