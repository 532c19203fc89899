"""The smallest job there is, run on an engine's workers to ask them: a process of its own, to be ended.

::

    nothing ▶ Name the questions  b""   → (number, b"")   a few, so that several workers get one
            ▶ Spread them         GroupByKey
            ▶ Ask                 number → nothing        answers go to a file in staging, or into an error

Beam hands functions over by reference or as bytecode: the first needs this package on the worker, the second
the same Python. Whether it has these is the question, so the workers get source (``job.doctor.answer``).
An engine that can be asked for a value on each worker, as Dask can, needs no job.

``python -m job.doctor.probe`` takes a request as JSON and prints what came of it as JSON.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from typing import Any, Final

from job import secrets
from job.doctor import answer
from job.engines import choice
from job.engines.engine import Engine
from job.errors import one_line
from job.terminal import library_output

_QUESTIONS: Final = 16
_ENDS: Final = ("DONE", "FAILED", "CANCELLED")


def source(function: str, told: dict[str, Any]) -> str:
    """Return an expression that has the value of ``job.doctor.answer``'s function for what was told."""
    text = inspect.getsource(answer)
    names = {"__name__": answer.__name__}
    return f"(lambda names: (exec({text!r}, names), names[{function!r}]({told!r}))[1])({names!r})"


class Sent:
    """A function of one argument, which it ignores; on a worker it is made from source."""

    def __init__(self, expression: str) -> None:
        self._expression = f"lambda _: {expression}"

    def __call__(self, _: object) -> Any:
        """Return the value of the expression."""
        return eval(self._expression)(None)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """Return how it is unpickled without its class."""
        return eval, (self._expression,)


def main() -> None:
    """Ask, and say what came of it: ``state``, ``error`` and the ``answers`` that came by themselves."""
    # Whatever else is printed here must not get into the answer.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    secrets.learn(request["beam_args"])
    library_output.hush(debug=request["debug"])
    try:
        with library_output.engine():
            found = _ask(request)
    except Exception as e:  # noqa: BLE001 - told by the process that asked
        found = {"state": "FAILED", "error": str(e), "told": one_line(e)}
    out.write(json.dumps(found))
    out.flush()
    # Threads of an engine that does not answer would keep the process.
    os._exit(0)


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    with library_output.imports():
        options = choice.beam_options(request["beam_args"])
    engine = choice.engine(options)
    answers = engine.ask_workers(source("answer", request["told"]), request["limit_s"])
    if answers is not None:
        return {"state": "DONE", "error": "", "answers": answers}
    return _run(engine, request)


def _run(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    with library_output.imports():
        import apache_beam as beam

    pipeline = beam.Pipeline(runner=engine.runner(), options=engine.options)
    questions = Sent(f"[(number, b'') for number in range({_QUESTIONS})]")
    _ = (
        pipeline
        | "Start" >> beam.Impulse()
        | "Name the questions" >> beam.FlatMap(questions).with_output_types(tuple[int, bytes])
        | "Spread them" >> beam.GroupByKey()
        | "Ask" >> beam.FlatMap(Sent(source("to_the_output", request["told"])))
    )
    try:
        with engine.ended_on_failure():
            result = pipeline.run()
            state = result.wait_until_finish(duration=int(request["limit_s"] * 1000))
            if state not in _ENDS:
                # Else it would keep its place on the engine.
                result.cancel()
                raise TimeoutError
    except TimeoutError:
        state = "RUNNING"
    return {"state": state, "error": ""}


if __name__ == "__main__":
    main()
