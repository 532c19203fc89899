"""Which model of several."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.errors import ModelError
from job.model import versions
from tests.support.nights import Night, dense, features, run_cli, saved


def touched(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    ("names", "newest"),
    [
        (("v9.keras", "v10.keras", "v8.keras"), "v10.keras"),
        (("m-2026-11-25.keras", "m-2026-9-30.keras", "m-2025-12-31.keras"), "m-2026-11-25.keras"),
        (("1.9.2.keras", "1.10.keras", "1.10.1.keras"), "1.10.1.keras"),
        (("1_2.keras", "1_10.h5", "1_9.keras"), "1_10.h5"),
        (("only.keras",), "only.keras"),
        (("v1.keras", "_v2.keras", ".v3.keras", "@v4.keras", "v5.keras.part", "v6.txt"), "v1.keras"),
    ],
)
def test_the_newest_is_the_one_with_the_greatest_numbers(
    tmp_path: Path, names: tuple[str, ...], newest: str
) -> None:
    touched(tmp_path, *names)
    assert versions.chosen(f"{tmp_path}/*") == str(tmp_path / newest)


def test_folders_count_where_they_hold_a_saved_model(tmp_path: Path) -> None:
    touched(tmp_path, "9/saved_model.pb", "10/saved_model.pb", "11/half-copied")
    assert versions.chosen(f"{tmp_path}/*") == str(tmp_path / "10")
    assert versions.chosen(f"{tmp_path}/[0-9]") == str(tmp_path / "9")


@given(st.lists(st.integers(0, 10**12), min_size=2, max_size=9, unique=True))
def test_numbers_are_compared_as_numbers(numbers: list[int]) -> None:
    paths = [f"/models/v{number}.keras" for number in numbers]
    assert max(paths, key=versions._version) == f"/models/v{max(numbers)}.keras"


def test_two_that_are_equally_new_are_refused(tmp_path: Path) -> None:
    touched(tmp_path, "v1.keras", "v01.keras")
    with pytest.raises(ModelError, match=r"v0?1\.keras are equally new; give one of them"):
        versions.chosen(f"{tmp_path}/*.keras")


@pytest.mark.parametrize(
    ("names", "two"),
    [
        (("flights-10.keras", "flights-old.keras"), ("flights-old", "flights-10")),
        (("flights-10.keras", "flights-10-broken.keras"), ("flights-10", "flights-10-broken")),
        (("v9.keras", "v10 (copy).keras", "v10.keras"), ("v10", "v10 (copy)")),
        (("a.keras", "b.keras"), ("a", "b")),
    ],
)
def test_names_that_differ_in_more_than_numbers_have_no_order(
    tmp_path: Path, names: tuple[str, ...], two: tuple[str, str]
) -> None:
    touched(tmp_path, *names)
    with pytest.raises(ModelError, match="differ in more than numbers") as caught:
        versions.chosen(f"{tmp_path}/*.keras")
    assert all(f"{tmp_path}/{name}.keras" in str(caught.value) for name in two)


def test_a_name_that_exists_is_that_name(tmp_path: Path) -> None:
    touched(tmp_path, "v[1].keras", "v1.keras")
    assert versions.chosen(f"{tmp_path}/v[1].keras") == f"{tmp_path}/v[1].keras"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "there is no such alias"),
        ("", "it has 0 lines"),
        ("a.keras\nb.keras\n", "it has 2 lines"),
        ("gone.keras\n", "gone.keras is not there"),
        ("@other\n", "it names another alias, @other"),
    ],
)
def test_an_alias_that_leads_nowhere_is_refused(tmp_path: Path, content: str | None, reason: str) -> None:
    touched(tmp_path, "a.keras", "b.keras")
    if content is not None:
        (tmp_path / "@champion").write_text(content)
    with pytest.raises(ModelError) as caught:
        versions.chosen(f"{tmp_path}/@champion")
    assert str(caught.value).startswith(f"--model={tmp_path}/@champion: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "content", ["v1.keras", "v1.keras\n", "\n  v1.keras \n", "../models/v1.keras", "{}/v1.keras"]
)
def test_an_alias_is_the_model_in_it(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "models"
    touched(folder, "v1.keras", "v2.keras")
    (folder / "@champion").write_text(content.format(folder))
    assert versions.chosen(f"{folder}/@champion") == str(folder / "v1.keras")


@pytest.mark.slow
def test_a_night_is_of_the_model_that_was_chosen(
    night: Night, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    night.shard("a", features(20))
    saved(dense(seed=1), night.folder / "v9.keras")
    saved(dense(seed=2), night.folder / "v10.keras")
    (night.folder / "@champion").write_text("v9.keras\n")
    monkeypatch.chdir(night.folder)
    code, _, err = run_cli(capfd, "score", *night.args("v*.keras", "--keys=id"))
    assert code == 0
    assert f"--model=v*.keras: {night.folder}/v10.keras" in err
    manifest = night.manifest()
    assert manifest["model"]["path"] == f"{night.folder}/v10.keras"
    # Another model is another run, whose output this one is not.
    code, _, err = run_cli(capfd, "score", *night.args("@champion", "--keys=id"))
    assert code == 6
    code, _, err = run_cli(capfd, "score", *night.args("@champion", "--keys=id", "--if_exists=replace"))
    assert code == 0
    assert night.manifest()["model"]["path"] == f"{night.folder}/v9.keras"
    assert night.manifest()["run_id"] != manifest["run_id"]
    code, _, err = run_cli(capfd, "score", *night.args("none-*.keras", "--keys=id"))
    assert code == 4
    assert "no model matches" in err
