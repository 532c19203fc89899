"""What a run's id is made of."""

from __future__ import annotations

from dataclasses import fields

import pytest

from job.cli import options
from job.flags import RunId, declared
from job.launch import identity
from job.spec import ModelReference, ScoringSpec, Shard

SHARDS = [Shard("/a/1", 10, "5"), Shard("/a/2", 11, "6")]
CHAMPION = ModelReference("/m.keras", None, False, "ab" * 32)
CHALLENGER = ModelReference("/c.keras", None, False, "cd" * 32, signature="x")
NOTHING_GIVEN = "5b71ff3b399a8ba5"


def run_id(*flags: str, challenger: ModelReference | None = None) -> str:
    spec, _ = options.parse(["--input=a/*.parquet", "--model=m.keras", "--output=out", *flags])
    return identity.run_id(spec, SHARDS, identity.Models(CHAMPION, challenger))[:16]


# As the version had them in which the options were a list of their own: nights are resumed, and found
# published, by their ids.
@pytest.mark.parametrize(
    ("flag", "known"),
    [
        ("--ds=2026-11-25", "5b71ff3b399a8ba5"),
        ("--features=a,b", "bcab79a8e282390b"),
        ("--ignore=a", "483febfa02015761"),
        ("--ignore=a,b", "f9d9903a2a188329"),
        ("--keys=id", "b38e27f664457657"),
        ("--cast=a=float32,b=int8", "ad46d0c9d2dd630f"),
        ("--prediction_columns=p,q", "efded76809927670"),
        ("--on_bad_row=fail", "1cf7f1dbe5e080bb"),
        ("--on_null=nan", "1fd46812acb45540"),
        ("--on_null=fill=0", "1d3bc6810f749465"),
        ("--on_nonfinite=keep", "93a0b039c9aabb9a"),
        ("--on_nonfinite_prediction=fail", "a25c9e426292d199"),
        ("--on_bad_shard=reject", "df211f843cb5f68f"),
        ("--max_rejected=1", "5b71ff3b399a8ba5"),
        ("--min_rows=1", "5b71ff3b399a8ba5"),
        ("--max_psi=0.2,p=.1", "5b71ff3b399a8ba5"),
        ("--golden=g.parquet", "5b71ff3b399a8ba5"),
        ("--if_exists=keep", "5b71ff3b399a8ba5"),
        ("--compression=none", "7bf9c4f63975bc18"),
        ("--row_group_rows=7", "a5226e68daff610a"),
        ("--batch_size=auto", "5b71ff3b399a8ba5"),
        ("--batch_size=1", "26a283f17384c0ad"),
        ("--split_rows=5", "6df38c7b5428fd76"),
        ("--model_sharing=machine", "5b71ff3b399a8ba5"),
        ("--device=cpu", "c665f31a9556e4c8"),
        ("--device=gpu", "fe5ce50208d0925d"),
        ("--kms_key=k", "5b71ff3b399a8ba5"),
        ("--wait_for_input=2h", "5b71ff3b399a8ba5"),
    ],
)
def test_ids_are_what_they_were(flag: str, known: str) -> None:
    assert run_id(flag) == known


def test_the_id_of_a_run_without_options_is_what_it_was() -> None:
    assert run_id() == NOTHING_GIVEN


@pytest.mark.parametrize(
    ("flags", "known"),
    [
        (["--challenger=c.keras"], "615fa9b8233ebb49"),
        (["--challenger=p.q:f", "--challenger_features=a,b"], "7e3d6da2f1da573d"),
        (["--challenger=p.q:f", "--keys=id"], "d4d56ab826bb7de8"),
    ],
)
def test_ids_with_a_challenger_are_what_they_were(flags: list[str], known: str) -> None:
    assert run_id(*flags, challenger=CHALLENGER) == known


def test_only_flags_of_the_list_above_change_an_id() -> None:
    """What is added later counts only where it is given, so that it leaves all ids that there are."""
    assert {flag.field for flag in declared(ScoringSpec) if flag.run_id is RunId.ALWAYS} == {
        *("keys", "features", "casts", "prediction_columns", "batch_size", "split_rows"),
        *("compression", "row_group_rows", "device", "on_bad_row", "on_null"),
        *("on_nonfinite", "on_nonfinite_prediction", "on_bad_shard"),
    }


def test_every_field_is_a_flag() -> None:
    flags = {flag.field for flag in declared(ScoringSpec)}
    assert {field.name for field in fields(ScoringSpec)} - flags == {"output_template"}
