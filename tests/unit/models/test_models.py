"""Every model builds, learns, saves, and comes back as its module says it does."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import keras
import numpy as np
import pytest

import models
from models import artifacts, custom_layer, custom_loss

pytestmark = pytest.mark.slow

KERAS_FILES = ("sequential", "functional", "classifier", "custom_loss", "custom_training_loop")
GENERATED = (*KERAS_FILES, "custom_layer")


def module(name: str) -> ModuleType:
    return importlib.import_module(f"models.{name}")


def examples(name: str) -> artifacts.Examples:
    # A seed that no model trains with.
    return artifacts.digit_data(99) if name == "classifier" else artifacts.regression_data(99)


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, check=False)


def test_the_list_names_every_builder_there_is() -> None:
    folder = Path(inspect.getfile(models)).parent
    builders = {path.stem for path in folder.glob("*.py") if "\ndef build(" in path.read_text()}
    assert builders == set(models.MODELS)


def test_models_stand_without_the_job() -> None:
    """The builders do; the command line beside them keeps TensorFlow quiet as the job's own does."""
    builders = [p for p in Path(inspect.getfile(models)).parent.glob("*.py") if p.name != "__main__.py"]
    lines = [line for path in builders for line in path.read_text().splitlines()]
    imports = [line for line in lines if line.lstrip().startswith(("import ", "from "))]
    assert len(imports) > 30
    assert not [line for line in imports if line.split()[1].split(".")[0] == "job"]


@pytest.mark.parametrize(
    ("name", "width", "layers"),
    [
        ("sequential", 10, [(128, "relu"), (1, "linear")]),
        ("functional", 10, [(64, "relu"), (32, "relu"), (1, "linear")]),
        ("classifier", 784, [(128, "relu"), (10, "softmax")]),
        ("custom_loss", 10, [(64, "relu"), (1, "linear")]),
        ("custom_training_loop", 10, [(32, "relu"), (1, "linear")]),
    ],
)
def test_architecture(name: str, width: int, layers: list[tuple[int, str]]) -> None:
    model = module(name).build()
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    assert model.input_shape == (None, width)
    assert [(layer.units, layer.activation.__name__) for layer in dense] == layers


@pytest.mark.parametrize(
    ("name", "optimizer", "loss"),
    [
        ("sequential", "adam", "mse"),
        ("functional", "adam", "mse"),
        ("custom_layer", "adam", "mse"),
        ("classifier", "adam", "categorical_crossentropy"),
        ("custom_loss", "sgd", custom_loss.absolute_error),
    ],
)
def test_compiled_with(name: str, optimizer: str, loss: object) -> None:
    model = module(name).build()
    assert type(model.optimizer).__name__.lower() == optimizer
    assert model.loss is loss or model.loss == loss


def test_the_training_loop_is_its_own() -> None:
    assert not module("custom_training_loop").build().compiled


@pytest.mark.parametrize("name", KERAS_FILES)
def test_trained_model_comes_back_and_predicts_what_it_learned(name: str, tmp_path: Path) -> None:
    path = tmp_path / "made" / "model.keras"
    losses = module(name).train(path, epochs=6)
    assert len(losses) == 6
    assert losses[-1] < 0.7 * losses[0]
    model = keras.models.load_model(path, compile=False, safe_mode=True)
    features, targets = examples(name)
    predicted = model.predict(features, batch_size=1024, verbose=0)
    assert predicted.shape == targets.shape
    fresh = module(name).build().predict(features, batch_size=1024, verbose=0)
    if name == "classifier":
        # Another seed draws other templates, so there is nothing to recognise, only a distribution.
        np.testing.assert_allclose(predicted.sum(axis=1), 1.0, rtol=1e-5)
        assert not np.allclose(predicted, fresh, atol=0.1)
    else:
        assert np.abs(predicted - targets).mean() < 0.5 * np.abs(fresh - targets).mean()


def test_classifier_recognises_the_images_it_saw(tmp_path: Path) -> None:
    module("classifier").train(tmp_path / "model.keras", epochs=3)
    images, classes = artifacts.digit_data(0)
    predicted = keras.models.load_model(tmp_path / "model.keras").predict(images, batch_size=1024, verbose=0)
    assert (predicted.argmax(axis=1) == classes.argmax(axis=1)).mean() > 0.99


@pytest.mark.parametrize("name", ["sequential", "custom_layer", "custom_training_loop"])
def test_the_same_seed_trains_the_same_model(name: str, tmp_path: Path) -> None:
    suffix = "weights.h5" if name == "custom_layer" else "keras"
    first = module(name).train(tmp_path / f"a.{suffix}", epochs=1, seed=5)
    again = module(name).train(tmp_path / f"b.{suffix}", epochs=1, seed=5)
    other = module(name).train(tmp_path / f"c.{suffix}", epochs=1, seed=6)
    assert first == pytest.approx(again, rel=1e-5)
    assert first != pytest.approx(other, rel=1e-5)


def test_custom_layer_is_built_by_its_first_call_only() -> None:
    model = custom_layer.build()
    assert not model.built
    assert not model.weights
    model(np.zeros((1, 10), np.float32))
    assert [tuple(weight.shape) for weight in model.weights] == [(10, 32), (32,), (32, 1), (1,)]


@pytest.mark.parametrize("custom_objects", [None, {"WrappedDense": custom_layer.WrappedDense}])
def test_custom_layer_saves_as_keras_and_does_not_load(
    custom_objects: dict[str, object] | None, tmp_path: Path
) -> None:
    model = custom_layer.build()
    model(np.zeros((1, 10), np.float32))
    model.save(tmp_path / "model.keras")
    with pytest.raises(TypeError, match="could not be deserialized properly"):
        keras.models.load_model(tmp_path / "model.keras", custom_objects=custom_objects)


def test_custom_layer_comes_back_through_builder_and_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.weights.h5"
    trained = []
    original = custom_layer.build

    def watched() -> keras.Model:
        trained.append(original())
        return trained[-1]

    monkeypatch.setattr(custom_layer, "build", watched)
    losses = custom_layer.train(path, epochs=3)
    assert losses[-1] < 0.7 * losses[0]
    features, _ = examples("custom_layer")
    again = original()
    again(features[:1])
    again.load_weights(path)
    np.testing.assert_array_equal(again.predict(features, verbose=0), trained[0].predict(features, verbose=0))


def test_weights_do_not_load_before_the_first_call(tmp_path: Path) -> None:
    custom_layer.train(tmp_path / "x.weights.h5", epochs=1)
    with pytest.raises(ValueError, match="not yet been built"):
        custom_layer.build().load_weights(tmp_path / "x.weights.h5")


def test_custom_loss_is_needed_to_load_compiled_and_not_to_predict(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    custom_loss.train(path, epochs=1)
    with pytest.raises(TypeError, match="absolute_error"):
        keras.models.load_model(path)
    assert keras.models.load_model(path, compile=False).output_shape == (None, 1)


def test_custom_loss_is_the_mean_absolute_error() -> None:
    truth = np.array([[1.0, 2.0], [3.0, -4.0]], np.float32)
    predicted = np.array([[2.0, 0.0], [3.0, 4.0]], np.float32)
    np.testing.assert_array_equal(custom_loss.absolute_error(truth, predicted), [1.5, 4.0])


@pytest.mark.parametrize("name", GENERATED)
def test_train_refuses_a_suffix_before_it_fits(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"output .*model\.h6 does not end in \.(keras|weights\.h5)"):
        module(name).train(tmp_path / "model.h6")


def test_train_refuses_no_epochs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"epochs is 0; at least 1 is needed to train .*model\.keras"):
        module("sequential").train(tmp_path / "model.keras", epochs=0)


def test_list_needs_no_tensorflow() -> None:
    code = (
        "import sys; from models.__main__ import main; code = main(['list']);"
        "print(sorted({'tensorflow', 'keras', 'pandas', 'pyarrow'} & set(sys.modules))); sys.exit(code)"
    )
    done = run("-c", code)
    *listed, imported = done.stdout.splitlines()
    assert done.returncode == 0
    assert [line.split()[0] for line in listed] == list(models.MODELS)
    assert imported == "[]"


def test_train_from_the_command_line(tmp_path: Path) -> None:
    done = run("-m", "models", "train", "functional", "--output", f"{tmp_path}/m.keras", "--epochs", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("loss ")
    assert done.stdout.endswith(f" in 2 epochs: {tmp_path}/m.keras\n")
    assert keras.models.load_model(tmp_path / "m.keras").input_shape == (None, 10)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "nothing", "--output", "x.keras"], "invalid choice: 'nothing'"),
        (["train", "sequential"], "--output"),
        (["train", "flights", "--output", "x.keras"], "only flights needs it"),
        (["train", "sequential", "--output", "x.keras", "--features", "d"], "only flights needs it"),
        (["train", "sequential", "--output", "x.h5"], "does not end in .keras"),
        ([], "required: command"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from models.__main__ import main

    try:
        code = main(argv)
    except SystemExit as left:
        code = int(left.code or 0)
    told = capsys.readouterr().err.splitlines()
    assert code == 2
    assert message in told[-1]
