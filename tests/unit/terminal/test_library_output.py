"""Noise is kept out, comes back with --debug, and is never lost where it explains a failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

NOISE = "import os, sys; os.write(2, b'from C\\n'); print('from Python', file=sys.stderr)"
BEAM = """
import sys
import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

def boom(element):
    raise ValueError("element 3")

flags = ["--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner",
         "--direct_running_mode=multi_threading", "--direct_num_workers=2"]
try:
    with quiet.engine():
        with beam.Pipeline(options=PipelineOptions(flags)) as pipeline:
            pipeline | beam.Create([3, 4]) | beam.Map(boom)
except Exception as error:
    print("raised", "element 3" in str(error))
"""


def python(program: str, *, debug: bool = False) -> subprocess.CompletedProcess[str]:
    head = f"from job.terminal import library_output as quiet\nquiet.hush(debug={debug})\n"
    return subprocess.run(
        [sys.executable, "-c", head + program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_noise_of_an_import_is_dropped_and_errors_after_it_are_not() -> None:
    done = python(f"with quiet.imports():\n    {NOISE}\nprint('after', file=sys.stderr)")
    assert (done.returncode, done.stderr) == (0, "after\n")


def test_noise_of_a_failed_import_is_shown() -> None:
    done = python(f"with quiet.imports():\n    {NOISE}\n    import no_such_module")
    assert done.returncode == 1
    assert done.stderr.startswith("from C\nfrom Python\nTraceback")


def test_debug_shows_all_as_it_comes() -> None:
    done = python(f"with quiet.imports():\n    {NOISE}", debug=True)
    assert (done.returncode, done.stderr) == (0, "from C\nfrom Python\n")


def test_imports_inside_imports_are_one() -> None:
    inner = f"    with quiet.imports():\n        {NOISE}\n"
    done = python(f"with quiet.imports():\n{inner}    {NOISE}\nprint('after', file=sys.stderr)")
    assert (done.returncode, done.stderr) == (0, "after\n")


def test_a_closed_standard_error_is_no_error() -> None:
    done = python("import os\nos.close(2)\nwith quiet.imports():\n    import json\nprint('fine')")
    assert (done.returncode, done.stdout) == (0, "fine\n")


def test_warnings_and_loggers_are_silent_below_errors() -> None:
    done = python(
        "import logging, warnings\n"
        "warnings.warn('noise')\nlogging.warning('noise')\nlogging.getLogger('apache_beam.x').warning('noise')\n"
        "logging.getLogger('apache_beam.x').error('heard')"
    )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "ERROR:apache_beam.x:heard")
    assert "noise" not in done.stderr


def test_engine_drops_whole_tracebacks_and_nothing_else() -> None:
    done = python(
        "import sys, traceback\n"
        "with quiet.engine():\n"
        "    try:\n        1 / 0\n"
        "    except ZeroDivisionError:\n        print(traceback.format_exc(), file=sys.stderr)\n"
        "    print('kept', file=sys.stderr)\n"
        "    print(file=sys.stderr)\n"
        "print('after', file=sys.stderr)"
    )
    assert (done.returncode, done.stderr) == (0, "kept\n\nafter\n")


@pytest.mark.slow
@pytest.mark.parametrize(("debug", "silent"), [(False, True), (True, False)])
def test_a_failing_element_is_raised_and_printed_only_with_debug(debug: bool, silent: bool) -> None:
    done = python(BEAM, debug=debug)
    assert (done.returncode, done.stdout) == (0, "raised True\n")
    assert (done.stderr == "") is silent


@pytest.mark.slow
@pytest.mark.parametrize(("debug", "silent"), [(False, True), (True, False)])
def test_tensorflow_starts_without_a_word(debug: bool, silent: bool) -> None:
    use = "tf.config.list_physical_devices()\ntf.constant(1) + 1"
    done = python(f"with quiet.imports():\n    import tensorflow as tf\n{use}", debug=debug)
    assert done.returncode == 0
    assert (done.stderr == "") is silent
