"""``python -m models list`` and ``python -m models train NAME --output PATH``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from job.terminal import library_output
from models import MODELS


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``python -m models``."""
    made = argparse.ArgumentParser(prog="python -m models", description="Example models to score with.")
    commands = made.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="name every model")
    train = commands.add_parser("train", help="fit a model and save it")
    train.add_argument("name", choices=tuple(MODELS), metavar="NAME", help=", ".join(MODELS))
    train.add_argument(
        "--output", required=True, metavar="PATH", help="file to write; `list` tells the suffix"
    )
    train.add_argument("--epochs", type=int, help="passes over the data; each model has its default")
    train.add_argument("--seed", type=int, help="of weights, data and order; each model has its default")
    train.add_argument("--features", metavar="DIR", help="feature shards; of `flights` alone, which needs it")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m models`` and return its exit code: 0, or 2 with one line of why."""
    parse = parser()
    asked = parse.parse_args(argv)
    if asked.command == "list":
        width = max(map(len, MODELS))
        print("\n".join(f"{name:{width}}  {about}" for name, about in MODELS.items()))
        return 0
    if (asked.name == "flights") != (asked.features is not None):
        parse.error(
            f"--features is {asked.features}, model is {asked.name}: only flights needs it, and always"
        )
    options = {name: getattr(asked, name) for name in ("epochs", "seed", "features")}
    given = {name: value for name, value in options.items() if value is not None}
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with library_output.imports():
        importlib.import_module("tensorflow")
    try:
        losses = importlib.import_module(f"models.{asked.name}").train(asked.output, **given)
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(f"loss {losses[0]:.4g} -> {losses[-1]:.4g} in {len(losses)} epochs: {asked.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
