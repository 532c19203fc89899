"""The probe: a small Beam job that asks an engine's workers, in a process that the doctor can kill.

::

    nothing ▶ Number the requests  b""   → (number, b"")   several, so that several workers get one
            ▶ Spread them          GroupByKey
            ▶ Ask                  number → nothing        answers go to files in staging, or into an error

Beam sends a function by reference or as bytecode. The first needs this package on the worker, the second the
same Python, and whether the worker has these is what the doctor checks. So the worker gets source code
(``job.doctor.answer``). An engine that can return a value from each worker, as Dask can, needs no job.

``python -m job.doctor.probe`` reads a request as JSON and prints the outcome as JSON.
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

_REQUESTS: Final = 16
_ENDS: Final = ("DONE", "FAILED", "CANCELLED")


def source(function: str, told: dict[str, Any]) -> str:
    """Return an expression that calls a function of ``job.doctor.answer`` with ``told``."""
    text = inspect.getsource(answer)
    names = {"__name__": answer.__name__}
    return f"(lambda names: (exec({text!r}, names), names[{function!r}]({told!r}))[1])({names!r})"


class Sent:
    """A function of one argument, which it ignores. A worker builds it from source."""

    def __init__(self, expression: str) -> None:
        self._expression = f"lambda _: {expression}"

    def __call__(self, _: object) -> Any:
        """Return the value of the expression."""
        return eval(self._expression)(None)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """Return how it is unpickled without its class."""
        return eval, (self._expression,)


def main() -> None:
    """Ask the workers and print ``state``, ``error`` and, if the engine returned them, ``answers``."""
    # Only the outcome may be printed to standard output.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    secrets.learn(request["beam_args"])
    library_output.hush(debug=request["debug"])
    try:
        with library_output.engine():
            found = _ask(request)
    except Exception as e:  # noqa: BLE001 - the doctor's process shows it
        found = {"state": "FAILED", "error": str(e), "told": one_line(e)}
    out.write(json.dumps(found))
    out.flush()
    # The threads of an engine that does not answer would keep the process alive.
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
    requests = Sent(f"[(number, b'') for number in range({_REQUESTS})]")
    _ = (
        pipeline
        | "Start" >> beam.Impulse()
        | "Number the requests" >> beam.FlatMap(requests).with_output_types(tuple[int, bytes])
        | "Spread them" >> beam.GroupByKey()
        | "Ask" >> beam.FlatMap(Sent(source("write_answer", request["told"])))
    )
    try:
        with engine.ended_on_failure():
            result = pipeline.run()
            state = result.wait_until_finish(duration=int(request["limit_s"] * 1000))
            if state not in _ENDS:
                # It would go on holding the engine's slots.
                result.cancel()
                raise TimeoutError
    except TimeoutError:
        state = "RUNNING"
    return {"state": state, "error": ""}


if __name__ == "__main__":
    main()
