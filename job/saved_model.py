"""SavedModel folders: a TensorFlow graph and its serving signature, without Keras."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from job import storage
from job.errors import ModelError
from job.spec import CodedStrings, InputSpec, ModelReference, OutputSpec, Signature, Tensor

# Operations of a SavedModel that read, write or run something outside the graph.
_UNSAFE_OPS = frozenset(
    {
        "EagerPyFunc",
        "PyFunc",
        "PyFuncStateless",
        "ReadFile",
        "WriteFile",
        "MatchingFiles",
        "Save",
        "SaveSlices",
    }
)


class SavedModelStep:
    """A SavedModel's serving signature."""

    recompiles = False

    def __init__(self, reference: ModelReference) -> None:
        import tensorflow as tf

        folder = storage.local(reference.path)
        if not reference.trusted:
            _check_operations(folder)
        try:
            self._owner = tf.saved_model.load(folder)
        except (OSError, ValueError, tf.errors.OpError) as e:
            raise ModelError(f"--model={folder}: it cannot be loaded: {storage.one_line(e)}") from e
        signatures = self._owner.signatures
        name = "serving_default" if "serving_default" in signatures else next(iter(signatures), None)
        if name is None:
            raise ModelError(f"--model={folder}: it has no serving signature; save it with model.export()")
        self._function = signatures[name]
        self._specs = dict(sorted(self._function.structured_input_signature[1].items()))

    def signature(self) -> Signature:
        """Return the serving signature's inputs, sorted by name."""
        inputs = tuple(input_spec(name, spec) for name, spec in self._specs.items())
        return Signature(inputs, (), named=len(inputs) > 1)

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

    def traces(self) -> int:
        """Return 1: the graph was traced when it was saved."""
        return 1

    def weights_digest(self) -> str:
        """Return nothing: the artifact's digest covers its weights."""
        return ""


def _check_operations(folder: str) -> None:
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    message = saved_model_pb2.SavedModel()
    content = storage.read_bytes(storage.join(folder, "saved_model.pb")) or b""
    try:
        message.ParseFromString(content)
    except DecodeError as e:
        raise ModelError(f"--model={folder}: saved_model.pb is damaged: {storage.one_line(e)}") from e
    found = set()
    for graph in message.meta_graphs:
        found |= {node.op for node in graph.graph_def.node}
        found |= {node.op for function in graph.graph_def.library.function for node in function.node_def}
    unsafe = sorted(found & _UNSAFE_OPS)
    if unsafe:
        raise ModelError(
            f"--model={folder}: it reaches outside its graph ({', '.join(unsafe)}); "
            f"look at it, then add --trust_model"
        )


def input_spec(name: str, tensor: Any) -> InputSpec:
    """Return the description of an input, from a Keras tensor or a TensorFlow spec."""
    dtype = getattr(tensor.dtype, "name", tensor.dtype)
    return InputSpec(name, tuple(tensor.shape[1:]), dtype)


def feedable(tensor: Tensor) -> Any:
    """Return a tensor as Keras and TensorFlow take it; strings are gathered by code, not one by one."""
    if not isinstance(tensor, CodedStrings):
        return tensor
    import tensorflow as tf

    values = tensor.values if len(tensor.values) else np.array([b""], dtype=object)
    return tf.gather(tf.constant(values, dtype=tf.string), tensor.codes)
