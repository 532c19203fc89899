"""``KerasModelHandler``: this job's binding and predict step for Beam's own ``RunInference``.

Its elements are Arrow record batches or tables, as ``ReadFromParquetBatched`` gives them, and never single
rows: a dict per row was measured three orders of magnitude slower.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from job import storage
from job.binding.binding import Binding, Places, bind, pieces, to_tensors
from job.binding.predictions import in_order, prediction_fields, to_arrow
from job.errors import DataError, SchemaError, UsageError
from job.model import artifact, loading
from job.model.signature import listed
from job.shards.planner import index_columns
from job.spec import Device

Rows: TypeAlias = pa.RecordBatch | pa.Table


class KerasModelHandler(ModelHandler[Rows, PredictionResult, loading.LoadedModel]):
    """Record batch in, ``PredictionResult(record batch, prediction columns, model digest)`` out.

    A table is taken as well, and comes out as it went in; the predictions are a record batch with as many
    rows, in the same order. Each batch is bound by its own schema, as ``score`` binds a shard's, and
    predicted ``batch_size`` rows at a time. A row that cannot be fed to the model fails its batch. So does
    one whose columns feed the model by position (docs/binding.md) in another order than those of a
    process's first batch; no process sees what the others are given, so name ``features`` where batches
    come from many places.
    """

    def __init__(
        self,
        model_path: str,
        *,
        weights: str | None = None,
        trust_model: bool = False,
        model_sha256: str | None = None,
        keys: Sequence[str] = (),
        features: Sequence[str] = (),
        ignore: Sequence[str] = (),
        casts: Sequence[tuple[str, str]] = (),
        prediction_columns: Sequence[str] = (),
        batch_size: int = 16_384,
        device: Device = "auto",
        signature: str = "",
    ) -> None:
        """Take what the flags of ``score`` by the same names mean; nothing is read before ``load_model``.

        Raises:
            UsageError: a path has a scheme that is not reached.
        """
        super().__init__(max_batch_size=1)
        model_path, weights = _plain(model_path), weights and _plain(weights)
        self._artifact = (model_path, weights, trust_model, model_sha256, signature)
        self._bind = functools.partial(bind, keys=keys, features=features, casts=casts)
        self._named, self._ignore = frozenset((*keys, *features)), tuple(ignore)
        # Under the one name, the columns by position of this process's first batch.
        self._by_position: dict[str, tuple[str, ...]] = {}
        self._prediction_columns = tuple(prediction_columns)
        self._batch_rows = batch_size
        self._device = device

    def load_model(self) -> loading.LoadedModel:
        """Return this process's one copy of the model.

        Raises:
            ModelError: it is absent, no model, not trusted enough, or has another SHA-256.
        """
        path, weights, trusted, sha256, signature = self._artifact
        reference = artifact.resolve(path, weights, trusted=trusted, sha256=sha256, signature=signature)
        return loading.acquire(reference, device=self._device)

    def run_inference(
        self,
        batch: Sequence[Rows],
        model: loading.LoadedModel,
        inference_args: dict[str, Any] | None = None,  # noqa: ARG002 - Beam passes it; Keras takes none
    ) -> Iterable[PredictionResult]:
        """Predict record batches or tables, one result each, in order.

        Raises:
            UsageError: an element is neither.
            SchemaError: a batch's columns do not fit the model's inputs.
            ModelError: a row's prediction depends on the rows beside it.
            DataError: a row cannot be fed to the model.
        """
        for records in batch:
            parts = [self._predict(part, model) for part in _parts(records)]
            yield PredictionResult(records, pa.concat_batches(parts), model.digest)

    def _predict(self, records: pa.RecordBatch, loaded: loading.LoadedModel) -> pa.RecordBatch:
        binding = self._bound(records.schema, loaded)
        loaded.build([feed.input for feed in binding.feeds])
        fields = prediction_fields(loaded.signature.outputs, self._prediction_columns)
        parts: list[tuple[Places, list[pa.Array]]] = []
        for places, piece in pieces(records, binding, self._batch_rows):
            tensors, faults = to_tensors(piece, binding)
            if faults:
                fault = faults[0]
                raise DataError(
                    f"column {fault.column}: {fault.text} ({fault.code}, value {fault.example}) in "
                    f"{len(fault.rows)} row(s) of a record batch; drop them before RunInference"
                )
            outputs = loaded.predict(tensors, self._batch_rows)
            if loaded.independence.is_due(piece.num_rows, loaded.load):
                rows = np.arange(piece.num_rows)
                loaded.check_independence(tensors, rows, outputs, self._batch_rows, rows, "a batch")
            parts.append((places, to_arrow(outputs, fields, piece.num_rows)))
        columns = in_order(parts) if parts else [pa.array([], field.type) for field in fields]
        return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))

    def _bound(self, schema: pa.Schema, loaded: loading.LoadedModel) -> Binding:
        aside = (name for name in (*index_columns(schema), *self._ignore) if name not in self._named)
        binding = self._bind(schema, loaded.signature, unasked=tuple(aside))
        if binding.by == "position":
            # One step, for threads share the handler.
            first = self._by_position.setdefault("columns", binding.columns)
            if first != binding.columns:
                raise SchemaError(
                    f"columns feed the model by position, {listed(binding.columns)} in a record batch, and "
                    f"in the first one these did: {listed(first)}; give KerasModelHandler features=[…] in "
                    f"the model's order"
                )
        return binding

    def get_num_bytes(self, batch: Sequence[Rows]) -> int:
        """Return the batches' size in Arrow buffers, in bytes."""
        return sum(part.nbytes for records in batch for part in _parts(records))

    def get_metrics_namespace(self) -> str:
        """Return the name under which ``RunInference`` counts."""
        return "KerasModelHandler"

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        """Return that elements are not to be put together: each is a batch already."""
        return {"max_batch_size": 1}


def _parts(records: Rows) -> list[pa.RecordBatch]:
    """Return what an element holds as record batches, at least one.

    Raises:
        UsageError: it is neither a record batch nor a table.
    """
    if isinstance(records, pa.RecordBatch):
        return [records]
    if isinstance(records, pa.Table):
        # One, unless a column of text has more than 2 GB.
        return records.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], records.schema)]
    raise UsageError(
        f"KerasModelHandler takes pyarrow.RecordBatch or pyarrow.Table, many rows in each, and was given "
        f"{type(records).__name__}; put dicts together before RunInference: beam.BatchElements() | "
        f"beam.Map(lambda rows: pa.RecordBatch.from_pylist(list(rows)))"
    )


def _plain(path: str) -> str:
    return path if storage.is_remote(path) else storage.local(path)
