"""SavedModel folders: signatures, predictions, and graphs that reach outside themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from job.errors import ModelError
from job.model import artifact
from job.model.saved_model import SavedModelStep
from job.model.signature import CodedStrings, InputSpec, OutputSpec
from job.spec import ModelReference
from tests.support.nights import dense


def load(path: Path, *, trusted: bool = False, signature: str = "") -> SavedModelStep:
    return SavedModelStep(ModelReference(str(path), None, trusted, "0" * 64, signature=signature), str(path))


def save(path: Path, function: Callable[..., Any], *specs: tf.TensorSpec) -> Path:
    """Save one function as the serving signature of a module."""
    owner = tf.Module()
    owner.serve = tf.function(function, input_signature=specs)
    tf.saved_model.save(owner, path, signatures=owner.serve)
    return path


ROWS = tf.TensorSpec((None, 4), tf.float32, name="x")


def test_an_exported_model_predicts_what_it_did(tmp_path: Path) -> None:
    model = dense(4, 2)
    model.export(tmp_path / "m", verbose=False)
    step = load(tmp_path / "m")
    (given,) = step.signature().inputs
    assert (given.shape, given.dtype, step.signature().named) == ((4,), "float32", False)
    assert step.signature().ordered
    (made,) = step.outputs()
    assert (made.shape, made.dtype) == ((2,), "float32")
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    for rows in (1, 7, 50):
        expected = model.predict(x[:rows], batch_size=rows, verbose=0)
        np.testing.assert_array_equal(step.predict([x[:rows]])[0], expected)


def test_the_backend_takes_a_folder_for_a_saved_model(tmp_path: Path) -> None:
    save(tmp_path / "m", lambda x: x * 2.0, ROWS)
    reference = ModelReference(str(tmp_path / "m"), None, False, "0" * 64)
    step = artifact.held(reference.path, None).load(reference)
    assert isinstance(step, SavedModelStep)
    step.build(step.signature().inputs)
    assert (step.traces(), step.weights_digest(), step.recompiles) == (1, "", False)


def test_several_inputs_and_outputs_go_by_name(tmp_path: Path) -> None:
    zeta = tf.TensorSpec((None,), tf.float32, name="zeta")
    alpha = tf.TensorSpec((None, 2), tf.int64, name="alpha")

    def serve(zeta: Any, alpha: Any) -> dict[str, Any]:
        return {"wide": tf.cast(alpha, tf.float32), "narrow": zeta * 10.0}

    step = load(save(tmp_path / "m", serve, zeta, alpha))
    assert step.signature().inputs == (InputSpec("alpha", (2,), "int64"), InputSpec("zeta", (), "float32"))
    assert step.signature().named
    assert not step.signature().ordered
    assert step.outputs() == (OutputSpec("narrow", (), "float32"), OutputSpec("wide", (2,), "float32"))
    narrow, wide = step.predict([np.array([[1, 2]]), np.array([3], np.float32)])
    np.testing.assert_array_equal(narrow, [30])
    np.testing.assert_array_equal(wide, [[1, 2]])


def test_strings_go_in_and_out(tmp_path: Path) -> None:
    spec = tf.TensorSpec((None,), tf.string, name="city")
    step = load(save(tmp_path / "m", lambda city: {"upper": tf.strings.upper(city)}, spec))
    assert step.signature().inputs == (InputSpec("city", (), "string"),)
    assert step.outputs() == (OutputSpec("upper", (), "string"),)
    cities = CodedStrings(np.array([b"Oslo", b"Rome"], dtype=object), np.array([1, 0, 1], np.int32))
    assert step.predict([cities])[0].tolist() == [b"ROME", b"OSLO", b"ROME"]


def write_file(x: Any) -> Any:
    tf.io.write_file("/dev/null", "x")
    return x


def read_file(x: Any) -> Any:
    return x + tf.cast(tf.strings.length(tf.io.read_file("/dev/null")), tf.float32)


def call_python(x: Any) -> Any:
    return tf.py_function(lambda x: x, [x], tf.float32)


def call_numpy(x: Any) -> Any:
    return tf.numpy_function(lambda x: x, [x], tf.float32)


def read_lines(x: Any) -> Any:
    lines = tf.data.TextLineDataset("/dev/null").reduce(0.0, lambda n, _: n + 1.0)
    return x + lines


def print_to_file(x: Any) -> Any:
    tf.print("x", output_stream="file:///dev/null")
    return x


def only_in_a_branch(x: Any) -> Any:
    return tf.cond(tf.reduce_sum(x) > 1e9, lambda: write_file(x), lambda: x)


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (write_file, "WriteFile"),
        (read_file, "ReadFile"),
        (call_python, "EagerPyFunc"),
        (call_numpy, "PyFunc"),
        (read_lines, "TextLineDataset"),
        (print_to_file, "PrintV2"),
        (only_in_a_branch, "WriteFile"),
    ],
)
def test_a_graph_that_reaches_outside_needs_trust(
    tmp_path: Path, function: Callable[[Any], Any], operation: str
) -> None:
    save(tmp_path / "m", function, ROWS)
    with pytest.raises(ModelError, match=rf"outside its graph \(.*{operation}.*\); .*--trust_model"):
        load(tmp_path / "m")
    assert load(tmp_path / "m", trusted=True).signature().inputs[0].shape == (4,)


class Planting(tf.saved_model.experimental.TrackableResource):
    """A resource whose initializer, which the loader runs, writes a file."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def _create_resource(self) -> Any:
        return tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[])

    def _initialize(self) -> None:
        plant(self._path)


def plant(path: str) -> None:
    """Write lines to a file as a data set does; Python runs a line of a ``.pth`` that begins with import."""
    lines = tf.data.Dataset.from_tensors("\nimport this\n")
    tf.raw_ops.DatasetToTFRecord(
        input_dataset=lines._variant_tensor, filename=tf.constant(path), compression_type=tf.constant("")
    )


def planting_as_it_is_loaded(model: Path, lab: Path) -> None:
    owner = tf.Module()
    owner.resource = Planting(str(lab / "planted.pth"))
    owner.serve = tf.function(lambda x: {"y": tf.strings.as_string(x[:, 0])}, input_signature=[ROWS])
    # A resource is saved with what uses it.
    owner.use = tf.function(lambda: tf.shape(owner.resource.resource_handle), input_signature=[])
    tf.saved_model.save(owner, model, signatures=owner.serve)
    (lab / "planted.pth").unlink(missing_ok=True)


def planting_by_a_dataset(model: Path, lab: Path) -> None:
    def serve(x: Any) -> Any:
        plant(str(lab / "planted.pth"))
        return {"y": tf.strings.as_string(x[:, 0])}

    save(model, serve, ROWS)


def planting_by_a_save(model: Path, lab: Path) -> None:
    def serve(x: Any) -> Any:
        path = tf.constant(str(lab / "planted"))
        saved = tf.raw_ops.SaveV2(prefix=path, tensor_names=["a"], shape_and_slices=[""], tensors=[x])
        with tf.control_dependencies([saved]):
            return {"y": tf.strings.as_string(x[:, 0])}

    save(model, serve, ROWS)


def planting_by_an_old_graph(model: Path, lab: Path) -> None:
    """Of TensorFlow 1: its main operation is run as it is loaded."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, (None, 4), name="x")
        y = tf.strings.as_string(x[:, 0])
        v1.get_variable("v", (), tf.float32)
        session.run(v1.global_variables_initializer())
        path = tf.constant(str(lab / "planted"))
        planting = tf.raw_ops.SaveV2(
            prefix=path, tensor_names=["a"], shape_and_slices=[""], tensors=[tf.constant(1.0)]
        )
        signature = v1.saved_model.predict_signature_def({"x": x}, {"y": y})
        builder = v1.saved_model.Builder(str(model))
        builder.add_meta_graph_and_variables(
            session, ["serve"], {"serving_default": signature}, main_op=tf.group(planting)
        )
        builder.save()


def reading_by_a_dataset(model: Path, lab: Path) -> None:
    def serve(x: Any) -> Any:
        found = tf.data.experimental.CsvDataset([str(lab / "secret")], [tf.string])
        secret = found.reduce("", lambda sofar, row: sofar + row)
        return {"y": tf.fill([tf.shape(x)[0]], secret)}

    save(model, serve, ROWS)


def reading_by_a_constant(model: Path, lab: Path) -> None:
    def serve(x: Any) -> Any:
        read = tf.raw_ops.ImmutableConst(dtype=tf.uint8, shape=[7], memory_region_name=str(lab / "secret"))
        secret = tf.strings.unicode_encode(tf.cast(read, tf.int32), "UTF-8")
        return {"y": tf.fill([tf.shape(x)[0]], secret)}

    save(model, serve, ROWS)


def reading_by_a_table(model: Path, lab: Path) -> None:
    def serve(x: Any) -> Any:
        table = tf.raw_ops.AnonymousHashTable(key_dtype=tf.int64, value_dtype=tf.string)
        # Key: the number of the line; value: the whole of it.
        tf.raw_ops.InitializeTableFromTextFileV2(
            table_handle=table, filename=tf.constant(str(lab / "secret")), key_index=-1, value_index=-2
        )
        lines = tf.zeros([tf.shape(x)[0]], tf.int64)
        return {"y": tf.raw_ops.LookupTableFindV2(table_handle=table, keys=lines, default_value="")}

    save(model, serve, ROWS)


def reading_an_asset_elsewhere(model: Path, lab: Path) -> None:
    lines = tf.lookup.TextFileIndex
    whole = tf.lookup.TextFileInitializer(
        str(lab / "secret"), tf.int64, lines.LINE_NUMBER, tf.string, lines.WHOLE_LINE
    )
    owner = tf.Module()
    owner.table = tf.lookup.StaticHashTable(whole, "")
    owner.serve = tf.function(
        lambda x: {"y": owner.table.lookup(tf.cast(x[:, 0] * 0, tf.int64))}, input_signature=[ROWS]
    )
    tf.saved_model.save(owner, model, signatures=owner.serve)
    saved = saved_model_pb2.SavedModel.FromString((model / "saved_model.pb").read_bytes())
    saved.meta_graphs[0].asset_file_def[0].filename = "../../secret"
    (model / "saved_model.pb").write_bytes(saved.SerializeToString())
    (model / "assets" / "secret").unlink()


@pytest.mark.parametrize(
    ("attack", "told"),
    [
        (planting_as_it_is_loaded, r"it may reach outside its graph \(DatasetToTFRecord, TensorDataset\)"),
        (planting_by_a_dataset, r"it may reach outside its graph \(DatasetToTFRecord, TensorDataset\)"),
        (planting_by_a_save, r"it may reach outside its graph \(SaveV2\)"),
        (planting_by_an_old_graph, "it was saved as TensorFlow 1 does"),
        (reading_by_a_dataset, r"it may reach outside its graph \(CSVDatasetV2, ReduceDataset\)"),
        (reading_by_a_constant, r"it may reach outside its graph \(ImmutableConst\)"),
        (reading_by_a_table, "from a file that is not among its assets"),
        (reading_an_asset_elsewhere, r"its asset '../../secret' is no file in its folder"),
    ],
)
def test_a_strangers_model_writes_and_reads_nothing(
    tmp_path: Path, attack: Callable[[Path, Path], None], told: str
) -> None:
    (tmp_path / "secret").write_text("top-sec\n")
    (tmp_path / "secret").chmod(0o600)
    attack(tmp_path / "m", tmp_path)
    rows = np.ones((2, 4), np.float32)

    def harm() -> bool:
        planted = any(path.name.startswith("planted") for path in tmp_path.iterdir())
        return planted or read == [b"top-sec"] * 2

    read: list[bytes] = []
    with pytest.raises(ModelError, match=rf"{told}.*; look at it, then add --trust_model"):
        load(tmp_path / "m").predict([rows])
    assert not harm()
    # It is no paper tiger.
    read = load(tmp_path / "m", trusted=True).predict([rows])[0].tolist()
    assert harm()


def test_a_graph_that_prints_to_the_console_is_harmless(tmp_path: Path) -> None:
    def serve(x: Any) -> Any:
        tf.print("x")
        return x

    assert load(save(tmp_path / "m", serve, ROWS)).signature().inputs[0].shape == (4,)


def test_a_vocabulary_in_the_folder_is_no_reach_outside(tmp_path: Path) -> None:
    (tmp_path / "cities.txt").write_text("Rome\nOslo\n")
    city = keras.Input((), dtype="string", name="city")
    lookup = keras.layers.StringLookup(vocabulary=str(tmp_path / "cities.txt"))
    keras.Model(city, lookup(city)).export(tmp_path / "m", verbose=False)
    cities = CodedStrings(np.array([b"Oslo", b"Lima"], dtype=object), np.array([0, 1], np.int32))
    assert load(tmp_path / "m").predict([cities])[0].tolist() == [2, 0]


@pytest.mark.parametrize("content", [b"", b"\xff" * 50])
def test_a_damaged_graph_is_one_line(tmp_path: Path, content: bytes) -> None:
    save(tmp_path / "m", lambda x: x, ROWS)
    (tmp_path / "m" / "saved_model.pb").write_bytes(content)
    with pytest.raises(ModelError, match=r"m: (saved_model\.pb is damaged|it cannot be loaded)") as error:
        load(tmp_path / "m")
    assert "\n" not in str(error.value)


def test_lost_variables_are_one_line(tmp_path: Path) -> None:
    dense(4).export(tmp_path / "m", verbose=False)
    for path in (tmp_path / "m" / "variables").iterdir():
        path.unlink()
    with pytest.raises(ModelError, match="it cannot be loaded") as error:
        load(tmp_path / "m")
    assert "\n" not in str(error.value)


def test_no_serving_signature_is_told_with_the_fix(tmp_path: Path) -> None:
    tf.saved_model.save(tf.Module(), tmp_path / "m")
    with pytest.raises(ModelError, match=r"it has no serving signature; save it with model\.export"):
        load(tmp_path / "m")


@pytest.mark.parametrize("spec", [tf.TensorSpec(None, tf.float32), tf.TensorSpec((), tf.float32)])
def test_an_input_without_a_batch_axis_is_refused(tmp_path: Path, spec: tf.TensorSpec) -> None:
    save(tmp_path / "m", lambda x: {"y": x * 2.0}, spec)
    with pytest.raises(ModelError, match=r"input x of shape .* has no batch axis"):
        load(tmp_path / "m").signature()


def several(path: Path, *, with_default: bool = False) -> Path:
    """A model that subtracts 5 as ``explain``, squashes that as ``predict``, doubles as the default one."""
    owner = tf.Module()
    owner.explain = tf.function(lambda x: {"score": x - 5.0}, input_signature=[ROWS])
    owner.predict = tf.function(lambda x: {"score": tf.sigmoid(x - 5.0)}, input_signature=[ROWS])
    owner.double = tf.function(lambda x: {"score": x * 2.0}, input_signature=[ROWS])
    found = {"predict": owner.predict, "explain": owner.explain}
    default = {"serving_default": owner.double} if with_default else {}
    tf.saved_model.save(owner, path, signatures={**found, **default})
    return path


def test_of_several_signatures_one_must_be_chosen(tmp_path: Path) -> None:
    path = several(tmp_path / "m")
    with pytest.raises(ModelError, match=r"2 signatures .* choose by --signature one of explain, predict"):
        load(path)
    with pytest.raises(ModelError, match="no signature train; give --signature one of explain, predict"):
        load(path, signature="train")
    five = [np.full((2, 4), 5, np.float32)]
    assert load(path, signature="explain").predict(five)[0].tolist() == [[0.0] * 4] * 2
    assert load(path, signature="predict").predict(five)[0].tolist() == [[0.5] * 4] * 2


def test_a_serving_default_is_taken_unless_another_is_asked_for(tmp_path: Path) -> None:
    path = several(tmp_path / "m", with_default=True)
    five = [np.full((1, 4), 5, np.float32)]
    assert load(path).predict(five)[0].tolist() == [[10.0] * 4]
    assert load(path, signature="explain").predict(five)[0].tolist() == [[0.0] * 4]


def test_an_only_signature_needs_no_name(tmp_path: Path) -> None:
    owner = tf.Module()
    owner.only = tf.function(lambda x: {"y": x}, input_signature=[ROWS])
    tf.saved_model.save(owner, tmp_path / "m", signatures={"only": owner.only})
    assert load(tmp_path / "m").predict([np.ones((1, 4), np.float32)])[0].tolist() == [[1.0] * 4]


def unknown_rank(x: Any) -> dict[str, Any]:
    return {"y": tf.reshape(x, tf.random.uniform((tf.random.uniform((), 1, 3, tf.int32),), 1, 2, tf.int32))}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (unknown_rank, "its output y has an unknown number of axes; .*tf.ensure_shape"),
        (lambda x: {"y": tf.reduce_sum(x)}, r"its output y has no batch axis: its shape is \(\);"),
        (lambda x: {"y": tf.reduce_sum(x, 0)}, r"its output y has no batch axis: its shape is \(4\);"),
    ],
)
def test_an_output_without_rows_is_a_model_error(
    tmp_path: Path, function: Callable[[Any], Any], message: str
) -> None:
    step = load(save(tmp_path / "m", function, ROWS))
    with pytest.raises(ModelError, match=message):
        step.outputs()


def of_examples(examples: Any) -> dict[str, Any]:
    parsed = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature((), tf.float32)})
    return {"y": parsed["x"] * 2.0}


def test_an_input_of_serialized_examples_is_known_as_such(tmp_path: Path) -> None:
    spec = tf.TensorSpec((None,), tf.string, name="examples")
    step = load(save(tmp_path / "m", of_examples, spec))
    assert step.signature().serialized == "examples"
    value = tf.train.Feature(float_list=tf.train.FloatList(value=[4.0]))
    message = tf.train.Example(features=tf.train.Features(feature={"x": value})).SerializeToString()
    fed = CodedStrings(np.array([message], dtype=object), np.array([0, 0], np.int32))
    assert step.predict([fed])[0].tolist() == [8.0, 8.0]
    plain = load(save(tmp_path / "plain", lambda city: {"upper": tf.strings.upper(city)}, spec))
    assert plain.signature().serialized == ""


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda m: m.meta_graphs[0].object_graph_def.Clear(), id="no objects"),
        pytest.param(lambda m: m.meta_graphs[0].object_graph_def.nodes[0].Clear(), id="no root"),
        pytest.param(lambda m: m.meta_graphs[0].graph_def.library.Clear(), id="no functions"),
        pytest.param(lambda m: m.ClearField("meta_graphs"), id="no graphs"),
    ],
)
def test_what_tensorflow_cannot_load_is_a_model_error(tmp_path: Path, spoil: Callable[[Any], Any]) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    file = save(tmp_path / "m", lambda x: {"y": tf.reduce_sum(x, 1)}, ROWS) / "saved_model.pb"
    message = saved_model_pb2.SavedModel()
    message.ParseFromString(file.read_bytes())
    spoil(message)
    file.write_bytes(message.SerializeToString())
    with pytest.raises(ModelError, match=r"m: it (cannot be loaded: \w+: |has no serving signature)"):
        load(tmp_path / "m")
