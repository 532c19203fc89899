"""The real model: how many minutes late a flight arrives, said when it pushes back.

    python -m models.flights features --output data/features
    python -m models.flights train --features data/features --output data/models/flights.keras
    python -m models.flights evaluate --features data/features --predictions data/predictions

Fourteen inputs of shape ``(rows, 1)``, each named like its feature column: three ``string``, two
``int64``, the rest ``float32``. Lookups, embeddings and scaling are inside the model, so raw
columns go in. What comes out is ``dep_delay`` plus a learned correction: a flight that leaves two
hours late arrives about two hours late, and only the difference has to be learned.

It learns from January to November; December is for measuring. Where the features come
from: ``models.flights_data``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from models import flights_data
from models.artifacts import checked_output
from models.flights_data import INTEGERS, KEY, LABEL, NUMBERS, TEXTS

if TYPE_CHECKING:
    import keras

OUTPUT_NAME = "predicted_arr_delay"

_CARRIERS = "9E AA AS B6 DL EV F9 FL HA MQ OO UA US VX WN YV"
_DESTINATIONS = """
ABQ ACK ALB ANC ATL AUS AVL BDL BGR BHM BNA BOS BQN BTV BUF BUR BWI BZN CAE CAK CHO CHS CLE CLT CMH
CRW CVG DAY DCA DEN DFW DSM DTW EGE EYW FLL GRR GSO GSP HDN HNL HOU IAD IAH ILM IND JAC JAX LAS LAX
LEX LGB MCI MCO MDW MEM MHT MIA MKE MSN MSP MSY MTJ MVY MYR OAK OKC OMA ORD ORF PBI PDX PHL PHX PIT
PSE PSP PVD PWM RDU RIC ROC RSW SAN SAT SAV SBN SDF SEA SFO SJC SJU SLC SMF SNA SRQ STL STT SYR TPA
TUL TVC TYS XNA
"""

# Fixed here, and not read from the data, because Keras keeps a vocabulary out of `.weights.h5`: so a model
# that this function builds takes any weights it ever trained. A new code gets the shared "unknown" row.
VOCABULARIES: dict[str, tuple[str, ...] | tuple[int, ...]] = {
    "carrier": tuple(_CARRIERS.split()),
    "origin": ("EWR", "JFK", "LGA"),
    "dest": tuple(_DESTINATIONS.split()),
    "hour": tuple(range(5, 24)),
    "weekday": tuple(range(7)),
}
EMBEDDING_WIDTHS = {"carrier": 8, "origin": 3, "dest": 16, "hour": 4, "weekday": 2}

# Batches of 1,024 gain nothing on December and take half as long again.
BATCH_ROWS = 2048
LEARNING_RATE = 4e-3


def build() -> keras.Model:
    """Return the compiled model, untrained: 14 inputs ``(rows, 1)``, one output ``(rows, 1) float32``."""
    import keras  # here, so that features and evaluate start in one second and not in five

    layers = keras.layers
    inputs = {}
    parts = []
    for name in TEXTS + INTEGERS:
        text = name in TEXTS
        inputs[name] = keras.Input((1,), name=name, dtype="string" if text else "int64")
        lookup = layers.StringLookup if text else layers.IntegerLookup
        code = lookup(vocabulary=list(VOCABULARIES[name]), name=f"{name}_code")(inputs[name])
        rows = len(VOCABULARIES[name]) + 1
        embedded = layers.Embedding(rows, EMBEDDING_WIDTHS[name], name=f"{name}_embedding")(code)
        parts.append(layers.Flatten(name=f"{name}_flat")(embedded))
    for name in NUMBERS:
        inputs[name] = keras.Input((1,), name=name)
    numbers = layers.Concatenate(name="raw_numbers")([inputs[name] for name in NUMBERS])
    parts.append(layers.Normalization(name="numbers")(numbers))
    hidden = layers.Concatenate(name="features")(parts)
    hidden = layers.Dense(64, activation="relu", name="hidden_1")(hidden)
    hidden = layers.Dense(32, activation="relu", name="hidden_2")(hidden)
    correction = layers.Dense(1, name="correction")(hidden)
    output = layers.Add(name=OUTPUT_NAME)([inputs["dep_delay"], correction])
    model = keras.Model(inputs, output, name="flights")
    model.compile(optimizer=keras.optimizers.Adam(LEARNING_RATE), loss="mae")
    return model


def tensors(flights: pa.Table) -> dict[str, object]:
    """Return the feature columns of ``flights`` as tensors of shape ``(rows, 1)``, by input name."""
    import tensorflow as tf

    found = {}
    for name in TEXTS:
        # Keras' own adapter refuses numpy's object arrays, so text has to be a tensor already.
        found[name] = tf.constant(flights[name].to_pylist(), shape=(flights.num_rows, 1), dtype=tf.string)
    for name in INTEGERS:
        found[name] = tf.constant(flights[name].to_numpy()[:, None], dtype=tf.int64)
    for name in NUMBERS:
        found[name] = tf.constant(flights[name].to_numpy()[:, None], dtype=tf.float32)
    return found


def train(
    output: str | Path, *, features: str | Path, epochs: int = 5, seed: int = 2013
) -> tuple[float, ...]:
    """Fit on January to November, save to ``output`` (``.keras``) and return each epoch's loss.

    ``features`` is a folder that ``write_features`` filled. The loss is the mean absolute error in
    minutes. The same seed gives the same model but for the order of floating-point sums.

    Raises:
        FileNotFoundError: there is no such features folder.
        ValueError: ``output`` does not end in ``.keras``, ``epochs`` is below 1, or no flight is labelled.
    """
    path = checked_output(output, ".keras", epochs)
    flights = flights_data.training_flights(features)
    import keras

    keras.utils.set_random_seed(seed)
    model = build()
    numbers = np.column_stack([flights[name].to_numpy() for name in NUMBERS]).astype(np.float32)
    model.get_layer("numbers").adapt(numbers)
    decay = keras.callbacks.LearningRateScheduler(lambda epoch: LEARNING_RATE * (1 - epoch / epochs))
    history = model.fit(
        tensors(flights),
        flights[LABEL].to_numpy().astype(np.float32)[:, None],
        batch_size=BATCH_ROWS,
        epochs=epochs,
        callbacks=[decay],
        verbose=0,
    )
    model.save(path)
    return tuple(history.history["loss"])


@dataclass(frozen=True)
class Score:
    """How far predictions of December are off. Errors are means of absolute minutes over ``scored`` flights.

    ``labelled`` flights arrived; ``scored`` of them have a prediction. ``departure_mae`` is the error of
    answering with the departure's delay, ``mean_mae`` that of always answering with the
    mean delay of January to November.
    """

    labelled: int
    scored: int
    mae: float
    departure_mae: float
    mean_mae: float


def evaluate(predictions: str | Path, features: str | Path, column: str = OUTPUT_NAME) -> Score:
    """Compare ``column`` of the Parquet files under ``predictions`` with what happened in December.

    Joined by ``flight_id``, so the order of rows, files and folders does not matter.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: a column is missing, a flight is predicted twice, or no flight of December is predicted.
    """
    if not Path(predictions).is_dir():
        raise FileNotFoundError(f"no folder {predictions}; score the features first, with --keys {KEY}")
    files = pads.dataset(predictions, format="parquet")
    if missing := [name for name in (KEY, column) if name not in files.schema.names]:
        raise ValueError(
            f"no column {', '.join(missing)} under {predictions}, which has {', '.join(files.schema.names)};"
            f" score with --keys {KEY}"
        )
    scored = files.to_table(columns=[KEY, column])
    if twice := scored.num_rows - pc.count_distinct(scored[KEY]).as_py():
        raise ValueError(
            f"{twice} of {scored.num_rows} rows under {predictions} repeat a {KEY};"
            " score into a folder of its own"
        )
    labels = flights_data.december_labels(features)
    place = pc.index_in(labels[KEY], value_set=scored[KEY].combine_chunks())
    known = labels.filter(place.is_valid())
    if not known.num_rows:
        raise ValueError(
            f"none of the {labels.num_rows} flights of December is predicted under {predictions}"
        )
    truth = known[LABEL].to_numpy()
    predicted = scored[column].take(place.drop_null()).to_numpy().reshape(-1)
    past = pc.mean(flights_data.training_flights(features)[LABEL]).as_py()
    return Score(
        labelled=labels.num_rows,
        scored=known.num_rows,
        mae=float(np.abs(predicted - truth).mean()),
        departure_mae=float(np.abs(known["dep_delay"].to_numpy() - truth).mean()),
        mean_mae=float(np.abs(past - truth).mean()),
    )


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``python -m models.flights``."""
    made = argparse.ArgumentParser(prog="python -m models.flights", description="Delays of real flights.")
    commands = made.add_subparsers(dest="command", required=True)
    write = commands.add_parser("features", help="write one Parquet shard per day of 2013")
    write.add_argument("--output", required=True, metavar="DIR")
    fit = commands.add_parser("train", help="fit on January to November")
    fit.add_argument("--features", required=True, metavar="DIR")
    fit.add_argument("--output", required=True, metavar="FILE.keras")
    fit.add_argument("--epochs", type=int, default=5)
    fit.add_argument("--seed", type=int, default=2013)
    compare = commands.add_parser("evaluate", help="compare predictions of December with what happened")
    compare.add_argument("--predictions", required=True, metavar="DIR")
    compare.add_argument("--features", required=True, metavar="DIR")
    compare.add_argument("--column", default=OUTPUT_NAME, help="prediction column (default %(default)s)")
    return made


def run(asked: argparse.Namespace) -> str:
    """Do what was asked for and return one line or three to print."""
    if asked.command == "features":
        rows = flights_data.write_features(asked.output)
        return f"{rows:,} flights in 365 days: {asked.output}"
    if asked.command == "train":
        losses = train(asked.output, features=asked.features, epochs=asked.epochs, seed=asked.seed)
        return f"mean absolute error in training {losses[0]:.2f} -> {losses[-1]:.2f} minutes: {asked.output}"
    score = evaluate(asked.predictions, asked.features, asked.column)
    return (
        f"December: {score.scored:,} of {score.labelled:,} flights that arrived are predicted\n"
        f"mean absolute error {score.mae:.2f} minutes\n"
        f"answering with the departure's delay {score.departure_mae:.2f}, with the mean {score.mean_mae:.2f}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m models.flights`` and return its exit code: 0, or 2 with one line of why."""
    asked = parser().parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        print(run(asked))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
