"""Golden rows: rows with known predictions, which are predicted after each loading of the model.

They show before the first row is scored if a processor computes wrong, if a driver or a library has another
version, or if the model was exchanged. They are checked on the launcher, and then in each worker process. The
launcher reads the file; the rows travel with the task.
"""

from __future__ import annotations

import hashlib
import io
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.parquet as pq

from job import environment, storage
from job.binding.binding import Binding, Places, mismatches, pieces
from job.binding.predictions import Tolerance, apart, in_order, to_arrow
from job.errors import GoldenError, UsageError, one_line
from job.scoring.rejects import Rejects, RowPolicy, sift
from job.spec import ScoringSpec, Shard, Split

if TYPE_CHECKING:
    from job.model.loading import LoadedModel

MOST_ROWS: Final = 10_000
# They are part of the pipeline's graph, of which Dataflow takes 10 MB.
MOST_BYTES: Final = 4 << 20
_BATCH_ROWS: Final = 1024
_MOST_TEXT: Final = 80

_lock = threading.Lock()
# Which loadings of models have been checked in this process, by what.
_checked: set[tuple[str, str, Tolerance]] = set()


@dataclass(frozen=True)
class Golden:
    """Golden rows and how they are scored.

    ``content`` is an Arrow stream of a table of rows and predictions, ``digest`` its SHA-256, ``path`` the
    file that it was read from.
    """

    path: str
    rows: int
    content: bytes
    digest: str
    tolerance: Tolerance
    binding: Binding
    predictions: tuple[pa.Field, ...]
    policy: RowPolicy

    def check(self, loaded: LoadedModel) -> None:
        """Predict the rows and compare, unless that was done for this loading of the model.

        Raises:
            GoldenError: a prediction is not the known one.
        """
        with _lock:
            done = (loaded.load, self.digest, self.tolerance)
            if done not in _checked:
                self._check(loaded)
                _checked.add(done)

    def _check(self, loaded: LoadedModel) -> None:
        with pa.ipc.open_stream(self.content) as stream:
            (rows,) = stream.read_all().combine_chunks().to_batches()
        for field, found in zip(self.predictions, self._predicted(rows, loaded), strict=True):
            expected = rows.column(field.name)
            differ = apart(expected, found, self.tolerance).nonzero()[0]
            if len(differ):
                row = int(differ[0])
                raise GoldenError(
                    f"{self.path}: row {row}: {field.name} is {_text(found[row])}, expected "
                    f"{_text(expected[row])}; {len(differ):,} of {self.rows:,} rows differ by more than "
                    f"--golden_rtol={self.tolerance.rtol:g} and --golden_atol={self.tolerance.atol:g} allow; "
                    f"loaded by process {os.getpid()} on {socket.gethostname()} with {_versions()}, which "
                    f"has scored nothing with it"
                )

    def _predicted(self, rows: pa.RecordBatch, loaded: LoadedModel) -> list[pa.Array]:
        parts: list[tuple[Places, list[pa.Array]]] = []
        rejects = Rejects(Split("golden", Shard(self.path, 0, ""), (), 0, self.rows), self.policy)
        for places, piece in pieces(rows, self.binding, _BATCH_ROWS):
            good, tensors = sift(piece, places, self.binding, rejects)
            if good is not None:
                bad = ", ".join(f"{count} {reason}" for reason, count in rejects.reasons)
                first = rejects.row_numbers[0]
                raise _wrong(self.path, f"row {first} cannot be fed to the model ({bad}); leave it out")
            parts.append((places, to_arrow(loaded.predict(tensors), self.predictions, piece.num_rows)))
        return in_order(parts)


def checked(
    spec: ScoringSpec, binding: Binding, predictions: tuple[pa.Field, ...], loaded: LoadedModel
) -> Golden | None:
    """Read the golden rows of a spec and check the model by them; return ``None`` if the spec names none.

    Raises:
        UsageError: the file has no rows, or too many, or they do not fit the model.
        GoldenError: a prediction is not the known one.
    """
    if spec.golden is None:
        return None
    rows = read(spec.golden, spec, binding, predictions)
    rows.check(loaded)
    return rows


def read(path: str, spec: ScoringSpec, binding: Binding, predictions: tuple[pa.Field, ...]) -> Golden:
    """Read golden rows from a file, with the spec's flags on how rows are scored.

    Raises:
        UsageError: the file has no rows, or too many, or they do not fit the model.
    """
    table = _table(path)
    faults = [*_misnamed(table, binding, predictions), *mismatches(table.schema, binding)]
    # No row of it is to be left out: then a null or an infinity is a fault of the file.
    policy = RowPolicy.of(spec, 0).never_failing(0)
    faults += policy.misfits(table.schema, binding)
    if faults:
        raise _wrong(path, "; ".join(faults))
    columns = {name: table.column(name) for name in binding.columns}
    for field in predictions:
        try:
            columns[field.name] = table.column(field.name).cast(field.type)
        except (pa.ArrowException, NotImplementedError) as e:
            raise _wrong(path, f"column {field.name} is no {field.type}: {one_line(e)}") from e
        if columns[field.name].null_count:
            raise _wrong(path, f"column {field.name} has nulls; each row must have its prediction")
    content = _stream(pa.table(columns).combine_chunks())
    if len(content) > MOST_BYTES:
        raise _wrong(path, f"its rows are {len(content):,} bytes, more than {MOST_BYTES:,}; take fewer")
    tolerance = Tolerance(spec.golden_rtol, spec.golden_atol)
    digest = hashlib.sha256(content).hexdigest()
    return Golden(path, table.num_rows, content, digest, tolerance, binding, predictions, policy)


def _misnamed(table: pa.Table, binding: Binding, predictions: Sequence[pa.Field]) -> Iterator[str]:
    wanted = [field.name for field in predictions]
    if missing := [name for name in wanted if name not in table.column_names]:
        have = ", ".join(table.column_names)
        yield f"it lacks {', '.join(missing)} of the predictions {', '.join(wanted)}; its columns are {have}"
    if both := [name for name in wanted if name in binding.columns]:
        yield f"{both[0]} is a feature and a prediction; name predictions by --prediction_columns"


def _stream(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _table(path: str) -> pa.Table:
    size_bytes = storage.size_bytes(path)
    if size_bytes is None:
        raise _wrong(path, "no such file")
    if size_bytes > MOST_BYTES:
        raise _wrong(path, f"it has {size_bytes:,} bytes, more than {MOST_BYTES:,}; take fewer rows")
    try:
        table = pq.ParquetFile(io.BytesIO(storage.read_bytes(path) or b"")).read()
    except (pa.ArrowException, OSError) as e:
        raise _wrong(path, f"it cannot be read as Parquet: {one_line(e)}") from e
    if not 0 < table.num_rows <= MOST_ROWS:
        raise _wrong(path, f"it has {table.num_rows:,} rows; from 1 to {MOST_ROWS:,} are wanted")
    return table


def _wrong(path: str, told: str) -> UsageError:
    return UsageError(f"--golden={path}: {told}")


def _versions() -> str:
    return ", ".join(f"{name} {version}" for name, version in environment.versions())


def _text(value: pa.Scalar) -> str:
    text = str(value.as_py())
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}…"
