"""Flags in, a frozen spec out; tested as values, without running anything."""

from __future__ import annotations

import csv
import io
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.cli import options, parser
from job.errors import UsageError
from job.spec import ScoringSpec

ROOT = Path(__file__).parents[3]
REQUIRED = ("--input=a/*.parquet", "--model=m.keras", "--output=out")
SPEC = ScoringSpec(inputs=("a/*.parquet",), model="m.keras", output="out", output_template="out")
SHA = "0123456789abcdef" * 4


def spec_of(*flags: str) -> ScoringSpec:
    spec, beam_args = options.parse([*REQUIRED, *flags])
    assert beam_args == ()
    return spec


def refusal(*flags: str) -> str:
    with pytest.raises(UsageError) as caught:
        options.parse(flags)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_are_the_specs_own() -> None:
    assert spec_of() == SPEC


@pytest.mark.parametrize(
    ("flags", "change"),
    [
        (["--input=b"], {"inputs": ("a/*.parquet", "b")}),
        (["--input", "@list.txt"], {"inputs": ("a/*.parquet", "@list.txt")}),
        (["--keys=id"], {"keys": ("id",)}),
        (["--keys", "id, day"], {"keys": ("id", "day")}),
        (['--keys="a,b",c'], {"keys": ("a,b", "c")}),
        (["--features=x,y", "--keys=x"], {"features": ("x", "y"), "keys": ("x",)}),
        (["--cast=a=float32,b=int64"], {"casts": (("a", "float32"), ("b", "int64"))}),
        (['--cast="a=decimal128(10,2)"'], {"casts": (("a", "decimal128(10,2)"),)}),
        (["--cast=a=timestamp[us]"], {"casts": (("a", "timestamp[us]"),)}),
        (["--prediction_columns=p,q"], {"prediction_columns": ("p", "q")}),
        (["--batch_size=auto"], {"batch_size": None}),
        (["--batch_size=1"], {"batch_size": 1}),
        (["--batch_size", "16384"], {"batch_size": 16_384}),
        (["--split_rows=5"], {"split_rows": 5}),
        (["--row_group_rows=7"], {"row_group_rows": 7}),
        (["--if_exists=replace"], {"if_exists": "replace"}),
        (["--device=gpu"], {"device": "gpu"}),
        (["--device=gpu", "--device=gpu"], {"device": "gpu"}),
        (["--compression=none"], {"compression": "none"}),
        ([f"--model_sha256={SHA.upper()}"], {"model_sha256": SHA}),
        (["--wait"], {}),
        (["--no_wait"], {"wait": False}),
        (["--trust_model", "--debug"], {"trust_model": True, "debug": True}),
    ],
)
def test_a_flag_sets_its_field_and_no_other(flags: list[str], change: dict[str, object]) -> None:
    assert spec_of(*flags) == replace(SPEC, **change)  # type: ignore[arg-type]


def test_weights_go_with_a_builder() -> None:
    spec, _ = options.parse(["--input=a", "--model=pkg.mod:build", "--weights=w.weights.h5", "--output=o"])
    assert (spec.model, spec.weights) == ("pkg.mod:build", "w.weights.h5")


@pytest.mark.parametrize("model", ["m.keras", "saved/model", "gs://bucket/m.keras", "pkg.mod", "c:m.h5"])
def test_weights_with_anything_else_are_refused(model: str) -> None:
    message = refusal("--input=a", f"--model={model}", "--weights=w.weights.h5", "--output=o")
    assert "--weights=w.weights.h5" in message
    assert f"--model={model}" in message


@pytest.mark.parametrize(
    ("flag", "parts"),
    [
        ("--batch_size=0", ["--batch_size=0", "from 1", "auto"]),
        ("--batch_size=-5", ["--batch_size=-5", "from 1"]),
        ("--batch_size=many", ["--batch_size=many", "whole number"]),
        ("--batch_size=1_000", ["--batch_size=1_000"]),
        ("--batch_size=1.5", ["--batch_size=1.5"]),
        ("--batch_size=", ["--batch_size= is empty"]),
        ("--split_rows=0", ["--split_rows=0", "from 1"]),
        ("--row_group_rows=x", ["--row_group_rows=x", "from 1"]),
        ("--keys=a,b,a", ["--keys", "a is listed more than once"]),
        ("--features=a,,b", ["--features=a,,b", "item 2 of 3 is empty"]),
        ('--keys="a', ["--keys", "double quotes"]),
        ("--keys= ", ["item 1 of 1 is empty"]),
        ("--input=a/*.parquet", ["--input", "a/*.parquet", "more than once"]),
        ("--input=", ["--input="]),
        ("--cast=a", ["--cast=a", "COLUMN=TYPE"]),
        ("--cast==float32", ["--cast==float32", "COLUMN=TYPE"]),
        ("--cast=a=", ["--cast=a=", "COLUMN=TYPE"]),
        ("--cast=a=int8,a=int16", ["--cast", "a is listed more than once"]),
        ("--if_exists=append", ["--if_exists=append", "fail, keep, replace"]),
        ("--device=tpu", ["--device=tpu", "auto, cpu, gpu"]),
        ("--compression=zip", ["--compression=zip", "zstd", "none"]),
        (f"--model_sha256={SHA[1:]}", ["--model_sha256", "64 hexadecimal"]),
        (f"--model_sha256={'g' * 64}", ["--model_sha256", "64 hexadecimal"]),
        ("--output=other", ["--output is given twice", "'out'", "'other'"]),
        ("--output", ["--output", "expected one argument"]),
        ("--trust_model=yes", ["--trust_model", "yes"]),
    ],
)
def test_a_wrong_value_is_refused_with_flag_value_and_what_is_allowed(flag: str, parts: list[str]) -> None:
    message = refusal(*REQUIRED, flag)
    assert [part for part in parts if part not in message] == []


def test_wait_and_no_wait_exclude_each_other() -> None:
    assert refusal(*REQUIRED, "--wait", "--no_wait").startswith("--wait and --no_wait are both given")


def test_a_prediction_may_not_take_a_keys_name() -> None:
    assert "--prediction_columns=id: also in --keys" in refusal(
        *REQUIRED, "--keys=id", "--prediction_columns=p,id"
    )


@pytest.mark.parametrize("without", range(3))
def test_each_required_flag_is_missed_by_name(without: int) -> None:
    message = refusal(*(flag for at, flag in enumerate(REQUIRED) if at != without))
    assert REQUIRED[without].partition("=")[0] + " must be given" in message


def test_all_missing_flags_are_named_at_once() -> None:
    assert "--input, --model, --output must be given" in refusal()


NAME = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1)


@pytest.mark.slow
@given(st.lists(NAME, min_size=1, unique=True))
def test_any_column_names_survive_the_comma_list(names: list[str]) -> None:
    line = io.StringIO()
    csv.writer(line, quoting=csv.QUOTE_ALL, lineterminator="").writerow(names)
    assert spec_of(f"--features={line.getvalue()}").features == tuple(names)


@pytest.mark.parametrize(
    "beam_args",
    [
        ["--runner", "FlinkRunner"],
        ["--runner=FlinkRunner", "--flink_master=host:8081", "--parallelism", "4"],
        ["--experiments", "a", "--experiments=b,c"],
        ["--save_main_session", "--direct_num_workers=2"],
        ['--environment_config={"command": "a b"}'],
        ["--temp_location=gs://bucket/with space"],
    ],
)
def test_flags_of_the_engine_pass_untouched(beam_args: list[str]) -> None:
    assert options.parse([*REQUIRED, *beam_args]) == (SPEC, tuple(beam_args))


@settings(max_examples=30, deadline=None)
@given(
    st.permutations(
        [*[(flag,) for flag in REQUIRED], ("--runner", "FlinkRunner"), ("--experiments", "a"), ("--no_auth",)]
    )
)
def test_the_order_of_flags_does_not_matter_and_is_kept_for_the_engine(groups: list[tuple[str, ...]]) -> None:
    flat = [arg for group in groups for arg in group]
    ours = {*REQUIRED}
    assert options.parse(flat) == (SPEC, tuple(arg for arg in flat if arg not in ours))


def test_what_follows_bare_dashes_passes_unchecked() -> None:
    given_args = [*REQUIRED, "--runner=FlinkRunner", "--", "--known_to_a_job_server", "7", "--keys=id"]
    assert options.parse(given_args) == (
        SPEC,
        ("--runner=FlinkRunner", "--known_to_a_job_server", "7", "--keys=id"),
    )


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("--outptu=o", "--output"),
        ("--runer=F", "--runner"),
        ("--batch-size=3", "--batch_size"),
        ("--key=id", "--keys"),
        ("--flink_masterr=h", "--flink_master"),
        ("--trust-model", "--trust_model"),
    ],
)
def test_an_unknown_flag_names_the_nearest_known_one(wrong: str, near: str) -> None:
    name, _, value = wrong.partition("=")
    expected = f"unknown flag {name}; did you mean {near}?"
    assert refusal(*REQUIRED, wrong) == expected
    assert refusal(*REQUIRED, name, value or "x") == expected


def test_an_unknown_flag_with_nothing_near_points_to_help() -> None:
    message = refusal(*REQUIRED, "--zzzzqqqq=1", "--runner=FlinkRunner")
    assert message.startswith("unknown flag --zzzzqqqq; ")
    assert "--help" in message


def test_abbreviations_are_unknown_flags() -> None:
    assert refusal(*REQUIRED, "--compres=gzip") == "unknown flag --compres; did you mean --compression?"


def test_a_glob_that_the_shell_expanded_is_recognised() -> None:
    message = refusal("--input", "a/1.parquet", "a/2.parquet", "--model=m.keras", "--output=o")
    assert "'a/2.parquet' belongs to no flag" in message
    assert "quotes" in message


@pytest.mark.parametrize(
    ("flags", "use"),
    [
        (["--keys", "id", "day"], "--keys=id,day"),
        (["--keys=id", "day", "--runner=FlinkRunner"], "--keys=id,day"),
        (["--runner", "FlinkRunner", "--keys=id,", "day,", "hour"], "--keys=id,day,hour"),
        (["--features", "x", "two words", '"a,b"'], "--features='x,two words,\"a,b\"'"),
        (["--cast", "a=int8", "b=int16"], "--cast=a=int8,b=int16"),
        (["--max_psi", "0.2", "delay=0.1"], "--max_psi=0.2,delay=0.1"),
    ],
)
def test_a_list_with_blanks_is_told_with_commas(flags: list[str], use: str) -> None:
    message = refusal(*REQUIRED, *flags)
    assert message.endswith(f": a list has commas and no blanks; use {use}")
    # What is pasted back is what was meant.
    assert options.parse([*REQUIRED, *shlex.split(use)])


def test_a_word_after_one_value_belongs_to_no_flag() -> None:
    assert refusal(*REQUIRED, "--device", "cpu", "gpu").startswith("'gpu' belongs to no flag; ")


def test_a_wrong_value_of_an_engine_flag_is_refused_here() -> None:
    assert "--num_workers" in refusal(*REQUIRED, "--num_workers=several")


def test_no_flag_is_both_ours_and_the_engines() -> None:
    ours = set(parser.build()._option_string_actions) - {"-h", "--help"}
    theirs = set(options._beam_parser()._option_string_actions)
    assert len(ours) > 10
    assert len(theirs) > 100
    assert ours & theirs == set()


def test_every_field_of_the_spec_has_its_flag_and_the_other_way_round() -> None:
    flags = {name.removeprefix("--") for name in parser.build()._option_string_actions} - {
        "-h",
        "help",
        "no_wait",
        "config",
        "print_config",
        # How the command's end is told: a webhook's address is secret, and nothing of the run's.
        "json",
        "notify_url",
        "notify_on",
    }
    renamed = {"inputs": "input", "casts": "cast", "wait_for_input_s": "wait_for_input"}
    fields = set(ScoringSpec.__dataclass_fields__) - {"output_template"}
    assert flags == {renamed.get(name, name) for name in fields}


def test_help_shows_groups_defaults_and_exit_codes() -> None:
    text = parser.build().format_help()
    for part in ("input:", "model:", "binding:", "output:", "running:", "exit codes:", "examples:"):
        assert f"\n{part}" in text
    for default in (SPEC.split_rows, SPEC.compression, SPEC.row_group_rows, SPEC.if_exists):
        assert f"(default: {default})" in " ".join(text.split())


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "loaded"), [((), "False"), (("--runner=FlinkRunner",), "True")])
def test_beam_is_imported_only_when_a_flag_may_be_its_own(flags: tuple[str, ...], loaded: str) -> None:
    program = (
        "import sys; from job.cli import options; options.parse({}); print('apache_beam' in sys.modules)"
    )
    command = [sys.executable, "-c", program.format([*REQUIRED, *flags])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, loaded, "")


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        ("a, b ,c", ("a", "b", "c")),
        ('" a","b ", c ', (" a", "b ", "c")),
        ('"x,y" , z', ("x,y", "z")),
        ('"a""b "," c"', ('a"b ', " c")),
        ('a"b , c"d', ('a"b', 'c"d')),
        ("\ta\t,b\n", ("a", "b")),
    ],
)
def test_blanks_belong_to_a_name_only_within_quotes(given: str, keys: tuple[str, ...]) -> None:
    spec, _ = options.parse([*REQUIRED, f"--keys={given}"])
    assert spec.keys == keys


def test_a_cast_of_a_quoted_name() -> None:
    spec, _ = options.parse([*REQUIRED, '--cast= a = float32 , " b,c=int8"'])
    assert spec.casts == (("a", "float32"), (" b,c", "int8"))
