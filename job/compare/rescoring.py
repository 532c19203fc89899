"""Scoring published rows again, from the original shards and by plain ``Model.predict``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from job import storage
from job.binding.binding import Binding, Places, pieces
from job.binding.columns import as_type, cast_views
from job.binding.predictions import Tolerance, apart, in_order, to_arrow, unequal
from job.compare.night_files import NightFiles
from job.errors import DataError, JobError, ModelError
from job.model import artifact, loading, provenance
from job.model.signature import Feed, InputSpec
from job.scoring.challenger import failed_rows
from job.scoring.policy import REJECT, OnBadRow
from job.scoring.reader import SplitReader
from job.scoring.rejects import Rejects, RowPolicy, sift
from job.shards.planner import read_footer
from job.spec import Device, ModelReference, Shard, Split

# Rows that are predicted at once, and read at once.
_BATCH_ROWS = 8192
_CHUNK_ROWS = 65_536


@dataclass(frozen=True)
class Difference:
    """One value that scoring again does not give. ``row`` counts in the file, ``shard_row`` in the shard."""

    file: str
    row: int
    shard: str
    shard_row: int
    column: str
    published: str
    again: str


def binding_of(scoring: Mapping[str, Any]) -> Binding:
    """Return the binding that a manifest's ``scoring`` tells of."""
    feeds = tuple(
        Feed(InputSpec(feed["input"], tuple(feed["shape"]), feed["dtype"]), tuple(feed["columns"]))
        for feed in scoring["feeds"]
    )
    return Binding(feeds, tuple(scoring["casts"].items()))


class PublishedRows:
    """Rows of a night, and those of the shards that they were scored from."""

    def __init__(self, output: str, manifest: Mapping[str, Any]) -> None:
        self._output = output
        self.scoring = manifest["scoring"]
        self.binding = binding_of(self.scoring)
        self.files = NightFiles(output, manifest)

    def features(self, entry: Mapping[str, Any], shard_rows: NDArray[np.int64]) -> pa.RecordBatch:
        """Return the features and keys of rows of a shard, in order."""
        partition = tuple(entry["partition"].items())
        shard = Shard(entry["shard"], entry["shard_bytes"], entry["shard_stamp"], partition)
        keys = self.scoring["keys"]
        found: list[pa.RecordBatch] = []
        for split in _groups_with(shard, shard_rows):
            with SplitReader(split) as reader:
                chunks = reader.chunks(self.binding.columns, keys, _CHUNK_ROWS)
                found += _taken(chunks, shard_rows - split.first_row)
        return pa.Table.from_batches(found).combine_chunks().to_batches()[0]

    def published(self, entry: Mapping[str, Any], rows: NDArray[np.int64]) -> pa.RecordBatch:
        """Return rows of a file, by their numbers in it, ascending."""
        with pq.ParquetFile(storage.parquet_source(storage.join(self._output, entry["path"]))) as file:
            found = list(_taken(_valid(file.iter_batches(_CHUNK_ROWS)), rows))
        return pa.Table.from_batches(found).combine_chunks().to_batches()[0]


class Rescorer:
    """Scores rows of a night again. ``output`` is the folder, ``manifest`` the night's.

    With ``of_challenger`` that is the night as it would be if the challenger were its model.
    """

    def __init__(
        self,
        output: str,
        manifest: Mapping[str, Any],
        loaded: loading.LoadedModel,
        *,
        of_challenger: bool = False,
    ) -> None:
        self._rows = PublishedRows(output, manifest)
        self._scoring, self._binding = self._rows.scoring, self._rows.binding
        self.loaded, self._of_challenger = loaded, of_challenger

    def build(self) -> None:
        """Make the model ready for the inputs that the night was scored with.

        Raises:
            ModelError: it does not take them.
        """
        self.loaded.build([feed.input for feed in self._binding.feeds])

    def differences(
        self, entry: Mapping[str, Any], rows: NDArray[np.int64], tolerance: Tolerance
    ) -> tuple[int, list[Difference]]:
        """Score rows of one file again.

        Args:
            entry: the file's, in the manifest.
            rows: their numbers in the file, ascending.
            tolerance: how far predictions may be apart.

        Returns:
            How many rows differ, and every differing value of the first of them.

        Raises:
            ShardError: the shard cannot be read, or is not the one that was scored.
            DataError: rows cannot be fed to the model now.
        """
        rows, published = self._published(entry, rows)
        if not len(rows):
            return 0, []
        shard_rows = self._rows.files.shard_rows(entry)[rows]
        wanted = self._rows.features(entry, shard_rows)
        names = self._scoring["predictions"]
        fields = [published.schema.field(name) for name in names]
        again = self._predicted(wanted, fields, entry)
        columns = {
            name: (published.column(name), _alike(wanted.column(name), published.column(name).type))
            for name in self._scoring["keys"]
            if name in published.schema.names
        }
        wrong = {name: unequal(old, new) for name, (old, new) in columns.items()}
        for i, name in enumerate(names):
            columns[name] = (published.column(name), again[i])
            wrong[name] = apart(published.column(name), again[i], tolerance)
        bad = np.flatnonzero(np.any(list(wrong.values()), axis=0))
        found = [
            Difference(
                entry["path"],
                int(rows[i]),
                entry["shard"],
                int(shard_rows[i]),
                name,
                str(columns[name][0][int(i)].as_py()),
                str(columns[name][1][int(i)].as_py()),
            )
            for i in bad[:10]
            for name in columns
            if wrong[name][i]
        ]
        return len(bad), found

    def _published(
        self, entry: Mapping[str, Any], rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], pa.RecordBatch]:
        """Return the published rows, without those that the challenger failed on, and their numbers."""
        published = self._rows.published(entry, rows)
        if not self._of_challenger:
            return rows, published
        known = np.flatnonzero(~failed_rows(published.column(self._scoring["predictions"][0])))
        return rows[known], published.take(pa.array(known))

    def _predicted(
        self, rows: pa.RecordBatch, fields: Sequence[pa.Field], entry: Mapping[str, Any]
    ) -> list[pa.Array]:
        parts: list[tuple[Places, list[pa.Array]]] = []
        policy = RowPolicy.of_choices({**self._scoring, OnBadRow.flag: REJECT}, 0)
        for places, piece in pieces(rows, self._binding, _BATCH_ROWS):
            rejects = Rejects(Split("", Shard(entry["shard"], 0, ""), (), 0, 0), policy)
            good, tensors = sift(piece, places, self._binding, rejects)
            if good is not None:
                raise DataError(
                    f"{entry['shard']}: published rows cannot be fed to the model: {rejects.reasons}"
                )
            parts.append((places, to_arrow(self.loaded.predict_plain(tensors), fields, piece.num_rows)))
        return in_order(parts)


def rescorers(folder: str, night: Mapping[str, Any], findings: list[str]) -> list[Rescorer]:
    """Load what the night was scored with: the model, and the challenger if there is one."""
    nights = [night]
    if (rival := night.get("challenger")) is not None:
        nights.append({**night, "model": rival, "scoring": rival["scoring"]})
    found: list[Rescorer] = []
    champion: loading.LoadedModel | None = None
    for one in nights:
        rescorer = _rescorer(folder, one, findings, champion)
        if rescorer is None:
            return found
        found.append(rescorer)
        champion = rescorer.loaded
    return found


def each(
    sampled: Iterable[tuple[Mapping[str, Any], NDArray[np.int64]]], rescorers: Sequence[Rescorer]
) -> Iterator[tuple[Mapping[str, Any], NDArray[np.int64], Rescorer]]:
    """Yield each file and its rows for each of those that score them again."""
    for entry, rows in sampled if rescorers else ():
        for rescorer in rescorers:
            yield entry, rows, rescorer


def _rescorer(
    folder: str, night: Mapping[str, Any], findings: list[str], champion: loading.LoadedModel | None
) -> Rescorer | None:
    """Load a model that the night was scored with; where it is not to be had, that is a finding."""
    told = night["model"]
    # Scored on a GPU or not: the machine that looks at it need not have one.
    device: Device = "cpu" if night["scoring"]["device"] == "cpu" else "auto"
    try:
        reference = ModelReference(
            told["path"],
            told["weights"],
            told["trusted"],
            told["sha256"],
            # Nights from before there was a choice have none.
            signature=told.get("signature_name", ""),
        )
        if (found := artifact.digest(reference.path, reference.weights)) != reference.digest:
            raise ModelError(f"{reference.path}: its SHA-256 is {found} now, the night's {reference.digest}")
        _check_reads(reference, told.get("reads", {}))
        loaded = loading.acquire(reference, device=device, beside=champion)
        rescorer = Rescorer(folder, night, loaded, of_challenger=champion is not None)
        rescorer.build()
    except JobError as e:
        which = "model" if champion is None else "challenger"
        findings.append(f"the {which} is not to be had: {e}; --sample_rows=0 looks at the output alone")
        return None
    return rescorer


def _check_reads(reference: ModelReference, reads: Mapping[str, str]) -> None:
    """Refuse files that a builder read for the night and that are others now. Folders may hold more."""
    for path, digest in provenance.now(path for path in reads if not path.endswith("/")):
        if digest != reads[path]:
            raise ModelError(
                f"{reference.path}: its builder read {path}, whose SHA-256 is {digest or 'none'} now, the "
                f"night's {reads[path]}"
            )


def _alike(keys: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return a shard's keys in the type that is published, as far as they are such values."""
    try:
        return as_type(keys, kind)
    except pa.ArrowException:
        return keys


def _groups_with(shard: Shard, shard_rows: NDArray[np.int64]) -> Iterator[Split]:
    """Yield a split for each row group of a shard that holds any of these rows."""
    first_row = 0
    for group, rows in enumerate(read_footer(shard).group_rows):
        if np.any((shard_rows >= first_row) & (shard_rows < first_row + rows)):
            yield Split("", shard, (group,), first_row, rows)
        first_row += rows


def _taken(batches: Iterator[pa.RecordBatch], rows: NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
    """Yield those rows of consecutive batches; numbers before the first and after the last are left out."""
    start = 0
    for batch in batches:
        here = rows[(rows >= start) & (rows < start + batch.num_rows)] - start
        if len(here):
            taken = cast_views(batch).take(pa.array(here))
            # Codes of one batch mean nothing beside those of another.
            plain = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in taken.columns]
            yield pa.RecordBatch.from_arrays(plain, names=taken.schema.names)
        start += batch.num_rows


def _valid(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        # Of a damaged file, codes may lead out of the dictionary, where Arrow follows them.
        batch.validate(full=True)
        yield batch
