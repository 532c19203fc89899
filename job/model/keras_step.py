"""The predict step of a Keras model, from a file or from a builder."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from job.errors import JobError, ModelError, one_line
from job.model import artifact, builder, provenance
from job.model.kind import Held, Step
from job.model.saved_model import check_batch_axis, feedable, input_spec
from job.model.signature import CodedStrings, InputSpec, OutputSpec, Signature, Tensor
from job.spec import ModelReference, Reads
from job.storage import private_folder

# Two rows rather than one, so that a model cannot mistake the batch for a single example.
_ROWS_TO_BUILD = 2
_PLAIN_ROWS = 1024

Shape = tuple[int | None, ...]

# Reading weights holds them about five times for a moment. Of a model so large, a machine's processes do that
# one after the other: four that load 1 GB would want 20 GB, which they never need again.
_LARGE_BYTES = 64 << 20
_MISSING_CLASS = re.compile(r"Could not (locate|find|deserialize)|Unknown \w+:|custom", re.IGNORECASE)


def of_file(reference: ModelReference, held: Held) -> Step:
    """Load a model from Keras' own file or folder.

    Raises:
        ModelError: it cannot be read, or is not trusted enough.
    """

    def columns() -> tuple[str, ...]:
        return held.kind.columns(reference.path, held.file)

    return _KerasStep(reference, _keras_model(reference, held), columns)


def of_builder(reference: ModelReference, weights_file: str | None) -> Step:
    """Have a builder make a model, which gets its weights when it is built.

    Raises:
        ModelError: the builder fails.
    """
    import keras

    path = reference.path
    with provenance.recorded() as recorder:
        model = _built(path, keras)
    reads = recorder.found(builder.sources(path))

    def columns() -> tuple[str, ...]:
        names = getattr(model, "feature_names", ())
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise ModelError(f"--model={path}: its feature_names are {names!r}; set a list of column names")
        return tuple(names)

    return _KerasStep(reference, model, columns, weights_file, reads, is_pinned=reference.weights is not None)


def _alone(size_bytes: int) -> contextlib.AbstractContextManager[None]:
    """Return what keeps other processes of this machine from reading weights of that size at once."""
    return private_folder.turn("loading") if size_bytes >= _LARGE_BYTES else contextlib.nullcontext()


class _KerasStep:
    """A Keras model, through ``predict_on_batch``.

    ``columns`` gives the names of the one input's columns, as far as they are known. ``weights_file`` is read
    when the model is built. ``reads`` is what its builder read. ``is_pinned`` says that its weights are in a
    file, which has a digest.
    """

    def __init__(
        self,
        reference: ModelReference,
        model: Any,
        columns: Callable[[], tuple[str, ...]],
        weights_file: str | None = None,
        reads: Reads = (),
        *,
        is_pinned: bool = True,
    ) -> None:
        import keras

        self._reference, self._model, self._columns = reference, model, columns
        self._weights_file, self._reads, self._is_pinned = weights_file, reads, is_pinned
        # Keras compiles for XLA where there is a GPU, and JAX always does: each batch shape is a program.
        self._is_tensorflow = keras.backend.backend() == "tensorflow"
        self.recompiles = bool(self._model.jit_compile) or not self._is_tensorflow
        self._lock = contextlib.nullcontext() if self._is_tensorflow else threading.Lock()
        self._structure: Any = None
        self._outputs: tuple[OutputSpec, ...] = ()

    def signature(self) -> Signature:
        import keras

        if not (self._model.built and getattr(self._model, "inputs", None)):
            # Not the compute type: Keras casts to that by itself, from whatever holds more digits.
            dtype = self._model.variable_dtype
            return Signature((), (), named=False, default_dtype=dtype, columns=self._columns())
        # A functional model keeps the dict or list it was made with; a Sequential has one input.
        sequential = isinstance(self._model, keras.Sequential)
        self._structure = self._model.inputs if sequential else self._model.input
        self._check_flat("inputs", self._structure)
        if isinstance(self._structure, dict):
            names = sorted(self._structure)
            tensors = [self._structure[name] for name in names]
        else:
            tensors = list(self._model.inputs)
            names = [tensor.name for tensor in tensors]
        inputs = tuple(input_spec(name, tensor) for name, tensor in zip(names, tensors, strict=True))
        by_name, alone = isinstance(self._structure, dict), len(inputs) == 1
        columns = self._columns() if alone else ()
        return Signature(
            inputs, (), named=by_name or not alone, ordered=not by_name or alone, columns=columns
        )

    def build(self, inputs: Sequence[InputSpec]) -> None:
        texts = [spec.name for spec in inputs if spec.dtype == "string"]
        if texts and not self._is_tensorflow:
            backend = self._reference.backend.upper()
            raise ModelError(
                f"{self._reference.path}: {backend} knows no strings, which its input {texts[0]} takes; use "
                f"KERAS_BACKEND=tensorflow"
            )
        try:
            if (weights := self._weights_file) is not None:
                if not self._model.built:
                    self._model(self._pack([_zeros(spec) for spec in inputs]))
                with _alone(builder.weights_bytes(weights)):
                    self._model.load_weights(weights)
            traced = self._trace(inputs)
            flat, names = self._symbolic_outputs(inputs)
        except JobError:
            raise
        except Exception as e:
            shapes = ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in inputs)
            raise ModelError(f"{self._reference.path}: it cannot be built for {shapes}: {one_line(e)}") from e
        self._outputs = tuple(
            # The type that was traced: some of Keras' layers declare another one than they give.
            OutputSpec(name, shape, _dtype_name(real))
            for name, shape, real in zip(
                names, self._output_shapes(inputs, names, flat, _flat(traced)), _flat(traced), strict=True
            )
        )

    def _output_shapes(
        self, inputs: Sequence[InputSpec], names: Sequence[str], declared: list[Any], traced: list[Any]
    ) -> list[Shape]:
        """Return the outputs' shapes without the batch axis, ``None`` for what differs or is not known.

        What was traced is right: some of Keras' layers declare another shape than they give. What is declared
        fills what the trace leaves open, where two rows do not show it wrong.

        Raises:
            ModelError: an output has no batch axis.
        """
        is_open = any(None in spec.shape for spec in inputs)
        told: list[Shape] = []
        some: list[Any] | None = None
        for i, (name, promised, real) in enumerate(zip(names, declared, traced, strict=True)):
            found = _extents(real)
            if found is None:
                # A graph that calls Python knows not even the number of axes.
                found = tuple(promised.shape)
            is_concrete = isinstance(real, np.ndarray)
            # A first axis that is declared may be as long as these rows are many by chance.
            is_fixed = len(promised.shape) == len(found) > 0 and promised.shape[0] is not None
            rows = _ROWS_TO_BUILD if is_concrete and not is_fixed else None
            check_batch_axis(self._reference.path, name, found, rows)
            if is_concrete:
                told.append(_of_arrays(found[1:], tuple(promised.shape[1:]), is_open))
                continue
            filled = _filled(found[1:], tuple(promised.shape[1:]))
            if filled != found[1:] and not is_open:
                some = self._some_outputs(inputs) if some is None else some
                filled = filled if not some or some[i].shape[1:] == filled else found[1:]
            told.append(filled)
        return told

    def _some_outputs(self, inputs: Sequence[InputSpec]) -> list[np.ndarray]:
        """Predict two rows of nothing; no outputs where the model fails on them, which real rows may not."""
        with contextlib.suppress(Exception):
            return self.predict([_cells_of_nothing(spec) for spec in inputs])
        return []

    def _trace(self, inputs: Sequence[InputSpec]) -> Any:
        """Make the predict step and return its outputs, as arrays or as their descriptions."""
        if not self._is_tensorflow or self._model.run_eagerly or self.recompiles:
            return self._model.predict_on_batch(self._pack([_zeros(spec) for spec in inputs]))
        import tensorflow as tf

        if not self._model.built:
            self._model(self._pack([_zeros(spec) for spec in inputs]))
        self._model.make_predict_function()
        # An open batch axis: one trace serves every number of rows.
        open_batch = [tf.TensorSpec((None, *spec.shape), spec.dtype) for spec in inputs]
        traced = self._model.predict_function.get_concrete_function([(self._pack(open_batch),)])
        return traced.structured_outputs

    def _symbolic_outputs(self, inputs: Sequence[InputSpec]) -> tuple[list[Any], list[str]]:
        import keras

        symbolic = [keras.KerasTensor((None, *spec.shape), spec.dtype, name=spec.name) for spec in inputs]
        outputs = self._model.compute_output_spec(self._pack(symbolic))
        self._check_flat("outputs", outputs)
        flat = _flat(outputs)
        if isinstance(outputs, dict):
            return flat, sorted(outputs)
        names = list(getattr(self._model, "output_names", []))
        if len(names) != len(flat):
            names = ["prediction"] if len(flat) == 1 else [f"prediction_{i}" for i in range(len(flat))]
        return flat, names

    def _check_flat(self, what: str, structure: Any) -> None:
        if any(isinstance(item, (dict, list, tuple)) for item in _flat(structure)):
            raise ModelError(
                f"--model={self._reference.path}: it has {what} within {what}; "
                f"give it one dict or one list of {what}"
            )

    def outputs(self) -> tuple[OutputSpec, ...]:
        return self._outputs

    def predict(self, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        try:
            with self._lock:
                outputs = self._model.predict_on_batch(self._pack([feedable(tensor) for tensor in tensors]))
        except Exception as e:
            # By name, for each backend has a class of its own: TensorFlow's ends so, JAX's message holds it.
            if "ResourceExhausted" in type(e).__name__ or "RESOURCE_EXHAUSTED" in str(e):
                raise MemoryError(one_line(e)) from e
            raise
        return [np.asarray(output) for output in _flat(outputs)]

    def predict_plain(self, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        fed = self._pack([feedable(tensor) for tensor in tensors])
        with self._lock:
            outputs = self._model.predict(fed, batch_size=_PLAIN_ROWS, verbose=0)
        return [np.asarray(output) for output in _flat(outputs)]

    def _pack(self, flat: Sequence[Any]) -> Any:
        # Exactly the declared inputs: Keras sorts the keys of a dict and takes what comes first, so one key
        # too many gives wrong predictions with no more than a warning.
        if isinstance(self._structure, dict):
            return dict(zip(sorted(self._structure), flat, strict=True))
        if isinstance(self._structure, (list, tuple)) and len(flat) > 1:
            return list(flat)
        (single,) = flat
        return single

    def traces(self) -> int:
        function = getattr(self._model, "predict_function", None)
        count = getattr(function, "experimental_get_tracing_count", None)
        return int(count()) if count is not None else 0

    def reads(self) -> Reads:
        return self._reads

    def weights_digest(self) -> str:
        if self._is_pinned:
            return ""
        digest = hashlib.sha256()
        for weight in self._model.get_weights():
            digest.update(np.ascontiguousarray(weight).tobytes())
        return digest.hexdigest()


def _flat(outputs: Any) -> list[Any]:
    if isinstance(outputs, dict):
        return [outputs[name] for name in sorted(outputs)]
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def _dtype_name(tensor: Any) -> str:
    # NumPy has strings as objects, TensorFlow by their name.
    name = getattr(tensor.dtype, "name", str(tensor.dtype))
    return "string" if name == "object" else str(name)


def _keras_model(reference: ModelReference, held: Held) -> Any:
    import keras

    try:
        # compile=False: the loss and the metrics are of no use here, and their code need not exist.
        with _alone(artifact.size_bytes(held.file)):
            return keras.models.load_model(held.file, compile=False, safe_mode=not reference.trusted)
    except Exception as e:
        raise _unloadable(held, keras.__version__, e) from e


def _unloadable(held: Held, here: str, error: Exception) -> ModelError:
    """Return the error that Keras cannot load an artifact, with what can be done about it."""
    told = f"--model={held.path}: Keras {here} cannot load it: {one_line(error)}"
    saved_by = held.kind.saved_by(held.file)
    if saved_by.startswith(("1.", "2.")):
        return ModelError(
            f"{told}; Keras {saved_by} saved it: load it with that version, write a SavedModel by "
            f"model.export(FOLDER) or tf.saved_model.save(model, FOLDER), and score that"
        )
    if _MISSING_CLASS.search(str(error)):
        told += "; a model with classes of its own is scored as --model=package.module:function --weights=…"
    return ModelError(told)


def _built(path: str, keras: Any) -> Any:
    module, _, name = path.partition(":")
    try:
        builder = getattr(importlib.import_module(module), name)
        model = builder()
    except Exception as e:
        raise ModelError(f"--model={path}: the builder failed: {one_line(e)}") from e
    if not isinstance(model, keras.Model):
        raise ModelError(f"--model={path}: it returned {type(model).__name__}, not a keras.Model")
    return model


def _extents(output: Any) -> Shape | None:
    """Return a shape, ``None`` for an axis of any length, or for a tensor of any number of axes."""
    if getattr(output.shape, "rank", 0) is None:
        return None
    return tuple(output.shape)


def _filled(traced: Shape, declared: Shape) -> Shape:
    """Return what was traced, with what is declared where that was left open."""
    if len(traced) != len(declared):
        return traced
    return tuple(d if t is None else t for t, d in zip(traced, declared, strict=True))


def _of_arrays(seen: Shape, declared: Shape, is_open: bool) -> Shape:
    """Return the shape of outputs of which two rows were ``seen``, of inputs that may have an open axis.

    What an array has may be so for these rows alone where it is not declared.
    """
    if len(seen) != len(declared):
        return (None,) * len(seen) if is_open else seen
    if is_open:
        return tuple(s if s == d else None for s, d in zip(seen, declared, strict=True))
    return tuple(None if d is None else s for s, d in zip(seen, declared, strict=True))


def _zeros(spec: InputSpec) -> Any:
    if spec.dtype == "string":
        return feedable(_cells_of_nothing(spec))
    import keras

    return keras.ops.convert_to_numpy(keras.ops.zeros(_shape_to_build(spec), spec.dtype))


def _cells_of_nothing(spec: InputSpec) -> Tensor:
    if spec.dtype == "string":
        return CodedStrings(np.array([b""], dtype=object), np.zeros(_shape_to_build(spec), np.int32))
    array: np.ndarray = _zeros(spec)
    return array


def _shape_to_build(spec: InputSpec) -> tuple[int, ...]:
    return (_ROWS_TO_BUILD, *(1 if extent is None else extent for extent in spec.shape))
