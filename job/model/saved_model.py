"""SavedModel folders: a TensorFlow graph and its serving signature, without Keras."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from job import storage
from job.errors import ModelError, one_line
from job.model import operations
from job.model.kind import Held, Kind
from job.model.signature import CodedStrings, InputSpec, OutputSpec, Signature, Tensor
from job.spec import ModelReference, Reads

if TYPE_CHECKING:
    import numpy as np

_DEFAULT: Final = "serving_default"
# What parses serialized ``tf.Example`` messages.
_PARSING_OPS: Final = frozenset(
    {
        *("ParseExample", "ParseExampleV2", "ParseSingleExample"),
        *("ParseSequenceExample", "ParseSequenceExampleV2", "ParseSingleSequenceExample"),
    }
)


class SavedModel(Kind):
    """A folder with a TensorFlow graph; refused, unless trusted, if it reaches outside of that."""

    name: ClassVar[str] = "saved_model"
    form: ClassVar[str] = "a SavedModel"
    mark: ClassVar[str] = "saved_model.pb"
    takes_signature: ClassVar[bool] = True

    def check(self, held: Held, *, trusted: bool) -> None:
        """Refuse links; its operations are checked when it is loaded, by TensorFlow's own reader."""
        for name, is_file in held.links.items():
            if not is_file:
                raise ModelError(
                    f"--model={held.path}: its {name!r} is a link to a folder; put a copy of that there "
                    f"(cp -rL)"
                )
            if not trusted:
                raise ModelError(
                    f"--model={held.path}: its {name!r} is a link, which may lead to any file of this "
                    f"machine; put a copy of what it leads to there (cp -rL), or add --trust_model"
                )

    def columns_file(self, copy: str, /) -> bytes | None:
        """Return what is in ``assets.extra``, TensorFlow's folder for what it does not read itself."""
        return storage.read_bytes(storage.join(copy, "assets.extra/feature_names.json"))

    def load(self, reference: ModelReference, held: Held) -> SavedModelStep:
        """Load the graph; not in turn with other processes, for weights are read into their places."""
        return SavedModelStep(reference, held.file)


class SavedModelStep:
    """One of a SavedModel's signatures: the one that is asked for, or its serving signature.

    ``folder`` is where it lies on this machine.
    """

    recompiles = False

    def __init__(self, reference: ModelReference, folder: str) -> None:
        import tensorflow as tf

        if not reference.trusted:
            _check_operations(reference.path, folder)
        try:
            self._owner = tf.saved_model.load(folder)
        except Exception as e:
            # Its loader raises whatever it stumbles over: a KeyError, an AttributeError, an OpError.
            raise ModelError(f"--model={reference.path}: it cannot be loaded: {one_line(e)}") from e
        self._path, self._folder = reference.path, folder
        signatures = self._owner.signatures
        self._function = signatures[_chosen(reference, list(signatures))]
        self._specs = dict(sorted(self._function.structured_input_signature[1].items()))

    def signature(self) -> Signature:
        """Return the serving signature's inputs, sorted by name."""
        inputs = tuple(input_spec(name, spec) for name, spec in self._specs.items())
        is_serialized = [spec.dtype for spec in inputs] == ["string"] and _parses_examples(self._function)
        serialized = inputs[0].name if is_serialized else ""
        alone = len(inputs) == 1
        columns = SavedModel().columns(self._path, self._folder) if alone else ()
        return Signature(inputs, (), named=not alone, ordered=alone, serialized=serialized, columns=columns)

    def build(self, inputs: Sequence[InputSpec]) -> None:
        """Nothing to do: the graph is in the artifact."""

    def outputs(self) -> tuple[OutputSpec, ...]:
        """Return the serving signature's outputs, sorted by name.

        Raises:
            ModelError: one has no batch axis, or it is not known how many axes it has.
        """
        outputs = sorted(self._function.structured_outputs.items())
        return tuple(_output_spec(self._path, name, spec) for name, spec in outputs)

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

    def reads(self) -> Reads:
        """Return nothing: there is no builder."""
        return ()

    def weights_digest(self) -> str:
        """Return nothing: the artifact's digest covers its weights."""
        return ""


def _chosen(reference: ModelReference, names: Sequence[str]) -> str:
    """Return the signature to score: the one that is asked for, else the default one, else the only one."""
    told = f"--model={reference.path}: it has"
    if not names:
        raise ModelError(f"{told} no serving signature; save it with model.export()")
    listed = ", ".join(sorted(names))
    if reference.signature:
        if reference.signature not in names:
            raise ModelError(f"{told} no signature {reference.signature}; give --signature one of {listed}")
        return reference.signature
    if _DEFAULT in names:
        return _DEFAULT
    if len(names) > 1:
        raise ModelError(
            f"{told} {len(names)} signatures and none is called {_DEFAULT}; choose by --signature one of "
            f"{listed}"
        )
    return names[0]


def _parses_examples(function: Any) -> bool:
    """Say whether a signature makes features of ``tf.Example`` messages by itself."""
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(node for inner in graph.library.function for node in inner.node_def)]
    return any(node.op in _PARSING_OPS for node in nodes)


def _output_spec(path: str, name: str, tensor: Any) -> OutputSpec:
    """Return the description of an output; raises ``ModelError``: it has no batch axis that is known of."""
    if tensor.shape.rank is None:
        raise ModelError(
            f"--model={path}: its output {name} has an unknown number of axes; save it with a signature that "
            f"returns one row for each row, as in tf.ensure_shape({name}, (None, 1))"
        )
    shape = tuple(tensor.shape)
    check_batch_axis(path, name, shape, None)
    return OutputSpec(name, shape[1:], tensor.dtype.name)


def check_batch_axis(path: str, name: str, shape: tuple[int | None, ...], rows: int | None) -> None:
    """Refuse an output that has no item for each row.

    Args:
        path: the model's.
        name: the output's.
        shape: the output's, batch axis included.
        rows: what the batch axis must be: the rows that were predicted, ``None`` where that was left open.

    Raises:
        ModelError: its first axis is another one, or it has none.
    """
    if shape and shape[0] == rows:
        return
    text = ", ".join("?" if extent is None else str(extent) for extent in shape)
    axes = f"no batch axis: its shape is ({text})"
    if rows is not None:
        axes += f" for {rows} rows"
    raise ModelError(
        f"--model={path}: its output {name} has {axes}; save a model whose every output has one item for "
        f"each row of the batch, however many there are"
    )


def _check_operations(path: str, folder: str) -> None:
    # The loader's own reader, so that what is checked is what it will take.
    from tensorflow.python.saved_model import loader_impl

    try:
        model = loader_impl.parse_saved_model(folder)
    except (OSError, ValueError) as e:
        raise ModelError(f"--model={path}: saved_model.pb is damaged: {one_line(e)}") from e
    if reason := operations.reason_to_refuse(model, folder):
        raise ModelError(f"--model={path}: {reason}; look at it, then add --trust_model")


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
    import numpy as np
    import tensorflow as tf

    values = tensor.values if len(tensor.values) else np.array([b""], dtype=object)
    return tf.gather(tf.constant(values, dtype=tf.string), tensor.codes)
