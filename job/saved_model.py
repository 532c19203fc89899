"""SavedModel folders: a TensorFlow graph and its serving signature, without Keras."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from job import storage
from job.errors import ModelError, one_line
from job.signature import CodedStrings, InputSpec, OutputSpec, Signature, Tensor
from job.spec import ModelReference

# Operations of a SavedModel that read, write or run something outside the graph. Not among them are those
# that every SavedModel holds to restore its variables and to read the vocabularies in its own folder.
_UNSAFE_OPS = frozenset(
    {
        *("EagerPyFunc", "PyFunc", "PyFuncStateless"),
        *("ReadFile", "WriteFile", "MatchingFiles", "Save", "SaveSlices", "LoadAndRemapMatrix"),
        *("WholeFileReaderV2", "TextLineReaderV2", "TFRecordReaderV2", "FixedLengthRecordReaderV2"),
        *("TextLineDataset", "TFRecordDataset", "TFRecordDatasetV2", "FixedLengthRecordDatasetV2"),
        *("SaveDataset", "SaveDatasetV2", "LoadDataset", "SnapshotDatasetV2", "CacheDatasetV2"),
        *("CreateSummaryFileWriter", "CreateSummaryDbWriter", "DebugIdentity", "DebugIdentityV2"),
    }
)


class SavedModelStep:
    """A SavedModel's serving signature."""

    recompiles = False

    def __init__(self, reference: ModelReference) -> None:
        import tensorflow as tf

        folder = storage.fetched(reference.path)
        if not reference.trusted:
            _check_operations(reference.path, folder)
        try:
            self._owner = tf.saved_model.load(folder)
        except (OSError, ValueError, tf.errors.OpError) as e:
            raise ModelError(f"--model={reference.path}: it cannot be loaded: {one_line(e)}") from e
        signatures = self._owner.signatures
        name = "serving_default" if "serving_default" in signatures else next(iter(signatures), None)
        if name is None:
            raise ModelError(
                f"--model={reference.path}: it has no serving signature; save it with model.export()"
            )
        self._function = signatures[name]
        self._specs = dict(sorted(self._function.structured_input_signature[1].items()))

    def signature(self) -> Signature:
        """Return the serving signature's inputs, sorted by name."""
        inputs = tuple(input_spec(name, spec) for name, spec in self._specs.items())
        return Signature(inputs, (), named=len(inputs) > 1, ordered=len(inputs) == 1)

    def build(self, inputs: Sequence[InputSpec]) -> None:
        """Nothing to do: the graph is in the artifact."""

    def outputs(self) -> tuple[OutputSpec, ...]:
        """Return the serving signature's outputs, sorted by name."""
        outputs = sorted(self._function.structured_outputs.items())
        return tuple(OutputSpec(name, tuple(spec.shape[1:]), spec.dtype.name) for name, spec in outputs)

    def predict(self, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        """Predict one batch; ``(rows, *shape)`` in and out."""
        import tensorflow as tf

        feed = {name: tf.convert_to_tensor(feedable(t)) for name, t in zip(self._specs, tensors, strict=True)}
        outputs = self._function(**feed)
        return [outputs[name].numpy() for name in sorted(outputs)]

    def predict_plain(self, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        """Predict one batch; a graph has no other way than ``predict``."""
        return self.predict(tensors)

    def traces(self) -> int:
        """Return 1: the graph was traced when it was saved."""
        return 1

    def weights_digest(self) -> str:
        """Return nothing: the artifact's digest covers its weights."""
        return ""


def _check_operations(path: str, folder: str) -> None:
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    message = saved_model_pb2.SavedModel()
    content = storage.read_bytes(storage.join(folder, "saved_model.pb")) or b""
    try:
        message.ParseFromString(content)
    except DecodeError as e:
        raise ModelError(f"--model={path}: saved_model.pb is damaged: {one_line(e)}") from e
    graphs = [meta.graph_def for meta in message.meta_graphs]
    nodes = [node for graph in graphs for node in graph.node]
    nodes += [node for graph in graphs for function in graph.library.function for node in function.node_def]
    unsafe = sorted({node.op for node in nodes if node.op in _UNSAFE_OPS or _prints_to_file(node)})
    if unsafe:
        raise ModelError(
            f"--model={path}: it reaches outside its graph ({', '.join(unsafe)}); "
            f"look at it, then add --trust_model"
        )


def _prints_to_file(node: Any) -> bool:
    return bool(node.op == "PrintV2" and node.attr["output_stream"].s.startswith(b"file:"))


def input_spec(name: str, tensor: Any) -> InputSpec:
    """Return the description of an input, from a Keras tensor or a TensorFlow spec.

    Raises:
        ModelError: it has no batch axis.
    """
    rank = tensor.shape.rank if hasattr(tensor.shape, "rank") else len(tensor.shape)
    if not rank:
        raise ModelError(f"model input {name} of shape {tensor.shape} has no batch axis; save it with one")
    dtype = getattr(tensor.dtype, "name", tensor.dtype)
    return InputSpec(name, tuple(tensor.shape[1:]), dtype)


def feedable(tensor: Tensor) -> Any:
    """Return a tensor as Keras and TensorFlow take it; strings are gathered by code, not one by one."""
    if not isinstance(tensor, CodedStrings):
        return tensor
    import tensorflow as tf

    values = tensor.values if len(tensor.values) else np.array([b""], dtype=object)
    return tf.gather(tf.constant(values, dtype=tf.string), tensor.codes)
