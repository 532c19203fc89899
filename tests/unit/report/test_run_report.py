"""Sums against numbers worked out by hand; JSON, table and page against what they must hold."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from job.errors import UsageError
from job.report.run_report import ModelLoad, RunReport
from job.spec import ModelReference, Receipt, Run, Shard, Split

STARTED_UNIX_S = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC
RUN = Run(
    run_id="ab" * 32,
    output="/data/out",
    model=ModelReference("/data/m.keras", None, False, "cd" * 32),
    signature="(10) float32",
    shards=2,
    splits=3,
    rows=1_750,
    max_rejected=0.5,
    replace=False,
    started_unix_s=STARTED_UNIX_S,
    versions=(),
)


def receipt(name: str, **changes: object) -> Receipt:
    plain = Receipt(
        split=Split(name, Shard(f"/data/in/{name}.parquet", 10, "1"), (0,), 0, 1_000),
        run_id=RUN.run_id,
        attempt=f"{name}.a",
        rows_read=1_000,
        rows_scored=1_000,
        rows_rejected=0,
        file_bytes=4_000,
        file_sha256="00" * 32,
        batch_rows=256,
        batches=4,
        read_s=0.5,
        bind_s=0.25,
        predict_s=2.0,
        write_s=0.125,
        worker="host-a:1",
        load="host-a:1:1",
        load_s=3.0,
        traces=1,
        first_batch_unix_s=STARTED_UNIX_S + 8,
        weights_digest="",
        boot_id="",
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


RECEIPTS = [
    receipt("p0"),
    receipt(
        "p1",
        rows_read=500,
        rows_scored=480,
        rows_rejected=20,
        file_bytes=1_920,
        batches=2,
        load_s=3.5,
        traces=2,
        first_batch_unix_s=STARTED_UNIX_S + 6,
    ),
    receipt(
        "p2",
        rows_read=250,
        rows_scored=250,
        file_bytes=1_000,
        batch_rows=128,
        batches=2,
        worker="host-b:9",
        load="host-b:9:1",
        load_s=4.0,
        traces=4,
        first_batch_unix_s=STARTED_UNIX_S - 90,
        reused=True,
    ),
]
REPORT = RunReport.of(RUN, RECEIPTS, ended_unix_s=STARTED_UNIX_S + 20)


def text_of(report: RunReport, width: int) -> str:
    screen = io.StringIO()
    Console(file=screen, width=width, color_system=None, highlight=False).print(report.summary_table())
    return screen.getvalue()


def test_sums_worked_out_by_hand() -> None:
    assert (REPORT.rows_read, REPORT.rows_scored, REPORT.rows_rejected) == (1_750, 1_730, 20)
    assert (REPORT.shards, REPORT.splits, REPORT.splits_reused) == (2, 3, 1)
    assert (REPORT.files, REPORT.files_bytes) == (3, 6_920)
    assert (REPORT.batches, REPORT.batch_rows) == (8, (128, 256))
    assert (REPORT.read_s, REPORT.bind_s, REPORT.predict_s, REPORT.write_s) == (1.5, 0.75, 6.0, 0.375)


def test_speed_is_of_this_command_alone() -> None:
    assert REPORT.wall_s == 20.0
    assert REPORT.rows_per_s == 74.0  # 1,000 and 480 rows in 20 s; 250 were there before


def test_first_batch_is_the_earliest_of_this_command() -> None:
    assert REPORT.first_batch_s == 6.0


def test_where_all_was_reused_there_is_no_first_batch_and_no_speed() -> None:
    reused = [dataclasses.replace(each, reused=True) for each in RECEIPTS]
    report = RunReport.of(RUN, reused, ended_unix_s=STARTED_UNIX_S + 2)
    assert (report.first_batch_s, report.rows_per_s, report.rows_scored) == (None, 0.0, 1_730)
    assert "first batch" not in report.lines()


def test_a_split_without_rows_has_no_first_batch() -> None:
    empty = receipt("p3", rows_read=0, rows_scored=0, batches=0, batch_rows=999, first_batch_unix_s=0.0)
    report = RunReport.of(RUN, [RECEIPTS[0], empty], ended_unix_s=STARTED_UNIX_S + 20)
    assert (report.first_batch_s, report.batch_rows, report.files) == (8.0, (256,), 2)


def test_loads_are_the_distinct_ones_with_their_last_seconds() -> None:
    assert REPORT.loads == (
        ModelLoad("host-a:1:1", "host-a:1", 3.5),
        ModelLoad("host-b:9:1", "host-b:9", 4.0),
    )
    assert REPORT.load_s == 7.5
    assert REPORT.workers == ("host-a:1", "host-b:9")


def test_traces_are_the_last_count_of_each_load() -> None:
    assert REPORT.traces == 6  # 2 of the first load, 4 of the second


def test_a_night_without_rows_divides_nothing_by_nothing() -> None:
    report = RunReport.of(RUN, [], ended_unix_s=STARTED_UNIX_S)
    assert (report.rows_per_s, report.loads, report.first_batch_s) == (0.0, (), None)
    assert "width:0.0%" in report.to_html()
    assert "0 scored of 0 read" in text_of(report, 80)


def test_two_receipts_of_one_split_are_refused() -> None:
    with pytest.raises(ValueError, match="4 receipts for 3 splits"):
        RunReport.of(RUN, [*RECEIPTS, RECEIPTS[0]], ended_unix_s=STARTED_UNIX_S + 1)


def test_json_comes_back_equal() -> None:
    assert RunReport.from_json(REPORT.to_json()) == REPORT


def test_json_keys_are_the_ones_that_others_read() -> None:
    data = json.loads(REPORT.to_json())
    assert data["report_version"] == 1
    assert data["started_utc"] == "2023-11-14T22:13:20+00:00"
    assert data["loads"][0] == {"load": "host-a:1:1", "worker": "host-a:1", "load_s": 3.5}
    assert set(data) == {
        *("report_version", "run_id", "output", "model", "model_sha256", "weights_sha256"),
        "challenger",
        *("started_utc", "wall_s", "first_batch_s", "rows_per_s", "shards", "splits", "splits_reused"),
        *("rows_read", "rows_scored", "rows_rejected", "reject_reasons", "files", "files_bytes"),
        *("loads", "workers", "batch_rows", "batches", "traces", "read_s", "bind_s", "predict_s", "write_s"),
        *("nonfinite_rows", "shards_rejected", "memory_rows", "compared", "golden_checks"),
        *("again_rows", "again_apart"),
        *("feeds", "fed_by", "rejects_left_out"),
    }


def test_columns_that_rejected_rows_lack_are_named_once_and_not_all_of_them() -> None:
    lacking = [dataclasses.replace(each, rejects_left_out=("t", "odd")) for each in RECEIPTS]
    report = RunReport.of(RUN, lacking, ended_unix_s=STARTED_UNIX_S + 20)
    assert report.lines()["left out"] == "of rejected rows, since it cannot be written: odd, t"
    assert "cannot be written: odd, t<" in report.to_html()
    assert json.loads(report.to_json())["rejects_left_out"] == ["odd", "t"]
    assert RunReport.from_json(report.to_json()) == report
    many = tuple(f"c{i:03}" for i in range(2_000))
    wide = RunReport.of(RUN, [receipt("p0", rejects_left_out=many)], ended_unix_s=STARTED_UNIX_S + 1)
    assert wide.lines()["left out"].endswith("c006, c007 and 1,992 more")


def test_a_report_from_before_this_key_is_read() -> None:
    data = json.loads(REPORT.to_json())
    del data["rejects_left_out"]
    assert RunReport.from_json(json.dumps(data)) == REPORT


def test_json_of_a_later_job_with_more_keys_is_read() -> None:
    data = {**json.loads(REPORT.to_json()), "rows_imputed": 3}
    assert RunReport.from_json(json.dumps(data)) == REPORT


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "not a run report"),
        ("[1]", "not a run report"),
        ("null", "not a run report"),
        ("{}", "report_version"),
        ('{"report_version": 2}', "version 2; this job reads 1"),
        ('{"report_version": 1}', "run_id"),
        (re.sub(r'"loads": \[', '"loads": [1, ', REPORT.to_json()), "not a run report"),
    ],
)
def test_what_is_no_report_is_refused_by_name(text: str, part: str) -> None:
    with pytest.raises(UsageError, match=r"out/_report\.json") as caught:
        RunReport.from_json(text, "out/_report.json")
    assert part in str(caught.value)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_table_says_what_where_how_fast_at_any_width(width: int) -> None:
    text = text_of(REPORT, width)
    # Folding may break anywhere, so look at the text without its line breaks and padding.
    dense = "".join(text.split())
    for part in (
        "1,730 scored of 1,750 read, 20 rejected",
        "2 shards in 3 splits",
        "/data/out",
        "3 files, 6.9 kB",
        "/data/m.keras",
        "74 rows/s over 20.0 s",
        "1 split done before",
        "2 in 2 workers, 7.5 s, 6 traces",
        "128 and 256 rows, 8 batches",
        "read 1.5, bind 0.8, predict 6.0, write 0.4",
        RUN.run_id,
    ):
        assert "".join(part.split()) in dense
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_the_table_takes_paths_literally() -> None:
    report = dataclasses.replace(REPORT, output="/out/[red]x[/red]")
    assert "/out/[red]x[/red]" in text_of(report, 80)


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [f"{tag} {name}" for name, _ in attrs if name in {"src", "href"}]


def test_the_page_needs_nothing_from_elsewhere_and_escapes_all() -> None:
    hostile = "<script>alert('&')</script>"
    load = ModelLoad(hostile, hostile, 1.0)
    report = dataclasses.replace(REPORT, output=hostile, model=hostile, run_id=hostile, loads=(load,))
    page = Page()
    page.feed(report.to_html())
    assert page.links == []
    assert set(page.tags) <= {"html", "meta", "title", "style", "h1", "h2", "table", "tr", "th", "td", "i"}
    assert "&lt;script&gt;" in report.to_html()


def test_the_bars_of_the_page_are_shares_of_all_seconds() -> None:
    # 1.5, 0.75, 6 and 0.375 of 8.625 s
    assert re.findall(r"width:([0-9.]+)%", REPORT.to_html()) == ["17.4", "8.7", "69.6", "4.3"]


def test_sizes_are_said_in_decimal_units() -> None:
    said = [
        dataclasses.replace(REPORT, files_bytes=size).lines()["files"]
        for size in (999, 1_000, 2_500_000, 10**12, 10**16)
    ]
    assert said == [
        "3 files, 999 bytes",
        "3 files, 1.0 kB",
        "3 files, 2.5 MB",
        "3 files, 1.0 TB",
        "3 files, 10000.0 TB",
    ]


def test_few_batch_sizes_are_listed_and_many_are_a_span() -> None:
    few = dataclasses.replace(REPORT, batch_rows=(128, 256, 4_096))
    many = dataclasses.replace(REPORT, batch_rows=(50, 60, 70, 1_001))
    assert few.lines()["batch size"].startswith("128 and 256 and 4,096 rows")
    assert many.lines()["batch size"].startswith("50 to 1,001 rows")
