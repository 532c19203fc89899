"""Which operations a SavedModel may hold: all that TensorFlow has registered, and ways round the rule."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import keras
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.core.framework import op_def_pb2, types_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.client import pywrap_tf_session

import models
from job.model import operations
from tests.unit.models.test_models import module

ROOT: Final = Path(__file__).parents[3]
# What reaches outside by its name, whatever TensorFlow says of it.
SUSPICIOUS: Final = re.compile(
    r"File|Path|Directory|Dataset|Iterator|PyFunc|Save|Restore|Checkpoint|Summary|Send|Recv|Rpc|Remote|"
    r"Collective|Nccl|Host|TPU|Tpu|Debug|Dump|Server|Session|Queue|Stage|Proto|Callback|CallModule|"
    r"CustomCall|Launch|Deserialize|Immutable|Reader|Record|Lmdb|Sql|Socket|Abort|Sleep|Vocab|MatchingF"
)
# What an argument or an attribute of an operation that does is called.
SUSPICIOUS_PARTS: Final = re.compile(
    r"file|path|prefix|director|address|url|uri|host|port$|server|cluster|descriptor|config|container|"
    r"library|region|vocab|stream|token|command|python|callback|task|worker"
)
# Each with what makes it harmless.
HARMLESS_PARTS: Final = {
    ("InitializeTableFromTextFileV2", "filename"): "one of the model's assets",
    ("PrintV2", "output_stream"): "the console",
    **{
        (op, "container"): "memory of this process"
        for op in operations.FAMILIES["tables"]
        if "Anonymous" not in op and op.endswith(("HashTableV2", "OfTensorsV2"))
    },
    ("VarHandleOp", "container"): "memory of this process",
    **{(op, "precision_config"): "how many digits" for op in ("XlaConvV2", "XlaDotV2", "XlaSvd")},
    **{
        (op, part): "how the function is made faster"
        for op in ("PartitionedCall", "StatefulPartitionedCall")
        for part in ("config", "config_proto")
    },
}
STATES: Final = (
    *("variables", "tables", "arrays of tensors", "random numbers", "layers of a GPU", "messages"),
    "calls and control flow",
)
# Stateful to keep them from being moved or computed in advance, not because they have a state.
KEPT_IN_PLACE: Final = {
    "CheckNumerics",
    "CheckNumericsV2",
    "Empty",
    "GuaranteeConst",
    "StatelessRandomGetAlg",
}


def registered() -> dict[str, Any]:
    """Every operation that this TensorFlow knows."""
    buffer = pywrap_tf_session.TF_GetAllOpList()
    found = op_def_pb2.OpList.FromString(pywrap_tf_session.TF_GetBuffer(buffer))
    return {op.name: op for op in found.op}


def may_be_text(part: Any) -> bool:
    """Say whether an argument or an attribute can hold a name of something."""
    if isinstance(part, op_def_pb2.OpDef.AttrDef):
        return "string" in str(part.type)
    return bool(part.type_attr or part.type == types_pb2.DT_STRING)


def a_model_of(op: str) -> Any:
    """A SavedModel of one function that holds one operation."""
    saved = saved_model_pb2.SavedModel()
    graph = saved.meta_graphs.add()
    graph.object_graph_def.nodes.add().function.concrete_functions.append("f")
    function = graph.graph_def.library.function.add()
    function.signature.name = "f"
    function.node_def.add(name="node", op=op, input=["table", "file"])
    return saved


def test_every_registered_operation_is_allowed_or_needs_trust() -> None:
    every = registered()
    assert set(every) >= operations.ALLOWED, "TensorFlow has let some of them go"
    reasons = {op: operations.reason_to_refuse(a_model_of(op), "") for op in every}
    allowed = {op for op, reason in reasons.items() if not reason}
    # The one that reads a file, here not an asset.
    assert allowed == operations.ALLOWED - {"InitializeTableFromTextFileV2"}
    assert {op: told for op, told in reasons.items() if told} == {
        **{op: f"it may reach outside its graph ({op})" for op in every.keys() - operations.ALLOWED},
        "InitializeTableFromTextFileV2": (
            "it fills a table (InitializeTableFromTextFileV2) from a file that is not among its assets"
        ),
    }
    # Of a version that knows more, the new ones are not among them until somebody has looked at them.
    assert len(allowed) == 714
    assert "714 of them are allowed" in (ROOT / "docs" / "trust.md").read_text()
    assert sum(map(len, operations.FAMILIES.values())) == len(operations.ALLOWED)
    assert operations.reason_to_refuse(a_model_of("OfNextYear"), "").endswith("(OfNextYear)")


def test_no_allowed_operation_is_one_that_reaches_outside() -> None:
    every = registered()
    by_name = {op for op in operations.ALLOWED if SUSPICIOUS.search(op)}
    assert by_name == {"InitializeTableFromTextFileV2"}
    parts = {
        (op, part.name)
        for op in operations.ALLOWED
        for part in (*every[op].input_arg, *every[op].attr)
        if SUSPICIOUS_PARTS.search(part.name) and may_be_text(part)
    }
    print(sorted(parts - HARMLESS_PARTS.keys()))
    assert parts == HARMLESS_PARTS.keys()
    states = frozenset[str]().union(*(operations.FAMILIES[name] for name in STATES))
    assert {op for op in operations.ALLOWED - states if every[op].is_stateful} == KEPT_IN_PLACE


def test_what_the_saver_holds_may_be_there_but_not_reached() -> None:
    for op in operations.SAVING:
        saved = a_model_of(op)
        assert operations.reason_to_refuse(saved, "") == f"it may reach outside its graph ({op})"
        saved.meta_graphs[0].object_graph_def.nodes[0].Clear()
        assert operations.reason_to_refuse(saved, "") == ""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a variable and a table that is filled from an asset."""
    folder = tmp_path_factory.mktemp("operations")
    (folder / "cities.txt").write_text("Rome\nOslo\n")
    city = keras.Input((), dtype="string", name="city")
    looked_up = layers.StringLookup(vocabulary=str(folder / "cities.txt"))(city)
    keras.Model(city, layers.Embedding(4, 2)(looked_up)).export(folder / "m", verbose=False)
    return folder / "m"


def parsed(folder: Path) -> Any:
    return saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())


def function(graph: Any, part: str) -> Any:
    return next(f for f in graph.graph_def.library.function if part in f.signature.name)


def call_the_saver(graph: Any) -> None:
    """The signature calls what saves, as it calls the model."""
    (call,) = [n for n in function(graph, "signature_wrapper").node_def if n.op.endswith("PartitionedCall")]
    call.attr["f"].func.name = function(graph, "traced_save").signature.name


def call_the_saver_by_its_name(graph: Any) -> None:
    (call,) = [n for n in function(graph, "signature_wrapper").node_def if n.op.endswith("PartitionedCall")]
    call.op = function(graph, "traced_save").signature.name


def name_the_saver_an_object(graph: Any) -> None:
    """The loader's initializer of the table is what restores."""
    one = next(
        o for o in graph.object_graph_def.nodes if "initializer" in "".join(o.function.concrete_functions)
    )
    one.function.concrete_functions[0] = function(graph, "traced_restore").signature.name


def let_the_saver_stand_in(graph: Any) -> None:
    function(graph, "traced_save").attr["api_implements"].s = b"lstm"


def make_the_saver_a_gradient(graph: Any) -> None:
    gradient = graph.graph_def.library.registered_gradients.add()
    gradient.gradient_func, gradient.registered_op_type = function(graph, "traced_save").signature.name, "Exp"


def hide_behind_a_function_of_the_same_name(graph: Any) -> None:
    """Whether the operation or the function of this name is run, nobody can see."""
    graph.graph_def.library.function.add().signature.name = "ReadFile"
    function(graph, "signature_wrapper").node_def.add(name="read", op="ReadFile")


def leave_the_stream_to_the_caller(graph: Any) -> None:
    node = function(graph, "signature_wrapper").node_def.add(name="print", op="PrintV2")
    node.attr["output_stream"].placeholder = "stream"


def print_to_a_file(graph: Any) -> None:
    node = function(graph, "signature_wrapper").node_def.add(name="print", op="PrintV2")
    node.attr["output_stream"].s = b"file:///tmp/planted"


def make_two_of_a_name(graph: Any) -> None:
    library = graph.graph_def.library.function
    library.add().CopyFrom(library[0])


def fill_the_table_from_a_text(graph: Any) -> None:
    filling = function(graph, "initializer")
    filling.node_def.add(name="file", op="Const")
    (node,) = [node for node in filling.node_def if node.op == "InitializeTableFromTextFileV2"]
    node.input[1] = "file:output:0"


def bound_to_the_filling(graph: Any) -> Any:
    filling = function(graph, "initializer").signature.name
    return graph.object_graph_def.concrete_functions[filling].bound_inputs


def fill_the_table_from_what_is_given(graph: Any) -> None:
    """The path is an argument that whoever calls the function gives."""
    bound = graph.object_graph_def.concrete_functions[
        function(graph, "initializer").signature.name
    ].bound_inputs
    del bound[0]


def bind_another_object(graph: Any) -> None:
    bound = graph.object_graph_def.concrete_functions[
        function(graph, "initializer").signature.name
    ].bound_inputs
    bound[0], bound[1] = bound[1], bound[0]


def bind_what_is_not_there(graph: Any) -> None:
    bound = graph.object_graph_def.concrete_functions[
        function(graph, "initializer").signature.name
    ].bound_inputs
    bound[0] = 10_000


def give_the_asset_another_path(graph: Any) -> None:
    (asset,) = [one for one in graph.object_graph_def.nodes if one.WhichOneof("kind") == "asset"]
    asset.children.add(node_id=0, local_name="_path")


def call_the_filling_with_a_text(graph: Any) -> None:
    """A second caller of the function that fills the table gives it a path of its own."""
    wrapper, filling = function(graph, "signature_wrapper"), function(graph, "initializer")
    wrapper.node_def.add(name="file", op="Const")
    call = wrapper.node_def.add(name="fill", op="PartitionedCall", input=["file:output:0", "file:output:0"])
    call.attr["f"].func.name = filling.signature.name


SAVES: Final = r"outside its graph \(MergeV2Checkpoints, SaveV2, ShardedFilename\)"
NO_ASSET: Final = r"fills a table \(InitializeTableFromTextFileV2\) from a file that is not among its assets"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (call_the_saver, SAVES),
        (call_the_saver_by_its_name, SAVES),
        (name_the_saver_an_object, r"outside its graph \(RestoreV2\)"),
        (let_the_saver_stand_in, SAVES),
        (make_the_saver_a_gradient, SAVES),
        (hide_behind_a_function_of_the_same_name, r"outside its graph \(ReadFile\)"),
        (leave_the_stream_to_the_caller, r"outside its graph \(PrintV2\)"),
        (print_to_a_file, r"outside its graph \(PrintV2\)"),
        (make_two_of_a_name, "its function '__inference.*' is there twice"),
        (fill_the_table_from_a_text, NO_ASSET),
        (fill_the_table_from_what_is_given, NO_ASSET),
        (bind_another_object, NO_ASSET),
        (bind_what_is_not_there, "its functions and its objects do not fit each other"),
        (give_the_asset_another_path, NO_ASSET),
        (call_the_filling_with_a_text, NO_ASSET),
    ],
)
def test_ways_round_the_rule(exported: Path, change: Callable[[Any], None], told: str) -> None:
    saved = parsed(exported)
    assert operations.reason_to_refuse(saved, str(exported)) == ""
    change(saved.meta_graphs[0])
    assert re.search(told, operations.reason_to_refuse(saved, str(exported)))


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../../secret", "a/../../../secret", "gs://bucket/secret", "absent.txt", "", "."]
)
def test_an_asset_lies_in_the_folder(exported: Path, name: str) -> None:
    saved = parsed(exported)
    saved.meta_graphs[0].asset_file_def[0].filename = name
    told = f"its asset {name!r} is no file in its folder"
    assert operations.reason_to_refuse(saved, str(exported)) == told


def test_several_graphs_and_none(exported: Path) -> None:
    saved = parsed(exported)
    saved.meta_graphs.add()
    assert "as TensorFlow 1 does" in operations.reason_to_refuse(saved, str(exported))
    assert operations.reason_to_refuse(saved_model_pb2.SavedModel(), "") == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_the_zoo_needs_no_trust(tmp_path: Path, name: str) -> None:
    model = module(name).build()
    if not model.built:
        model.build((None, 10))
    model.export(tmp_path / "m", verbose=False)
    assert operations.reason_to_refuse(parsed(tmp_path / "m"), str(tmp_path / "m")) == ""


def from_files(folder: Path) -> Any:
    """Every layer of Keras that has a vocabulary."""
    (folder / "words.txt").write_text("a\nb\n")
    (folder / "numbers.txt").write_text("3\n5\n")
    text, number = keras.Input((), dtype="string", name="text"), keras.Input((), dtype="int64", name="number")
    words = str(folder / "words.txt")
    vectors = layers.TextVectorization(vocabulary=words, output_sequence_length=3)(text)
    counts = layers.TextVectorization(vocabulary=words, output_mode="count", ngrams=2)(text[:, None])
    found = layers.IntegerLookup(vocabulary=str(folder / "numbers.txt"), output_mode="one_hot")(number)
    hashed = layers.Hashing(5, salt=3, output_mode="one_hot")(text)
    return keras.Model([text, number], [vectors, counts, found, hashed])


def recurrent(_: Path) -> Any:
    rows = keras.Input((None, 3))
    deep = layers.Bidirectional(layers.LSTM(4, return_sequences=True))(layers.Masking()(rows))
    return keras.Model(rows, layers.Dense(1)(layers.GRU(2)(layers.MultiHeadAttention(2, 4)(deep, deep))))


def convolutional(_: Path) -> Any:
    image = keras.Input((16, 16, 3))
    deep = layers.Conv2D(4, 3, activation="relu")(layers.Resizing(12, 12)(layers.RandomFlip()(image)))
    deep = layers.Conv2DTranspose(2, 3)(layers.BatchNormalization()(layers.MaxPooling2D()(deep)))
    return keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(deep)))


@pytest.mark.slow
@pytest.mark.parametrize("made", [from_files, recurrent, convolutional])
def test_what_keras_exports_needs_no_trust(tmp_path: Path, made: Callable[[Path], Any]) -> None:
    made(tmp_path).export(tmp_path / "m", verbose=False)
    assert operations.reason_to_refuse(parsed(tmp_path / "m"), str(tmp_path / "m")) == ""


def test_what_tensorflow_saves_needs_no_trust(tmp_path: Path) -> None:
    """Tables of several kinds, examples as messages, pictures as bytes, gradients."""
    (tmp_path / "words.txt").write_text("a\nb\n")
    lines = tf.lookup.TextFileIndex
    words = tf.lookup.TextFileInitializer(
        str(tmp_path / "words.txt"), tf.string, lines.WHOLE_LINE, tf.int64, lines.LINE_NUMBER
    )
    owner = tf.Module()
    owner.static = tf.lookup.StaticVocabularyTable(words, 3)
    owner.dense = tf.lookup.experimental.DenseHashTable(tf.int64, tf.int64, -1, -2, -3)
    owner.mutable = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    owner.mutable.insert(["a"], [3])
    owner.scale = tf.Variable(2.0)

    def serve(examples: Any) -> dict[str, Any]:
        row = tf.io.parse_example(
            examples,
            {"x": tf.io.FixedLenFeature((), tf.float32), "word": tf.io.FixedLenFeature((), tf.string)},
        )
        found = owner.static.lookup(row["word"]) + owner.mutable.lookup(row["word"])
        with tf.GradientTape() as tape:
            tape.watch(row["x"])
            y = tf.sigmoid(row["x"] * owner.scale)
        means = tf.map_fn(
            lambda picture: tf.reduce_mean(tf.cast(tf.io.decode_jpeg(picture), tf.float32)),
            row["word"],
            fn_output_signature=tf.float32,
        )
        return {"y": y, "slope": tape.gradient(y, row["x"]), "found": owner.dense.lookup(found), "m": means}

    owner.serve = tf.function(serve, input_signature=[tf.TensorSpec((None,), tf.string, name="examples")])
    tf.saved_model.save(owner, tmp_path / "m", signatures=owner.serve)
    assert operations.reason_to_refuse(parsed(tmp_path / "m"), str(tmp_path / "m")) == ""
