"""recipe.json makes the same selection again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from clip_retrieval import clip_filter
from clip_retrieval.cli import cli
from clip_retrieval.errors import ConfigError
from clip_retrieval.filter.recipe import read_config
from clip_retrieval.filter.run import run_filter

WriteIndex = Callable[..., Path]
WORDS = ["cat", "dog", "rocket", "sun", "sea"]


@pytest.fixture
def index(tmp_path: Path, write_index: WriteIndex) -> Path:
    return write_index(tmp_path / "ix", pd.DataFrame({"caption": WORDS, "width": range(5)}))


@pytest.fixture
def recipe(tmp_path: Path, index: Path) -> Path:
    clip_filter(
        query=("cat + 0.5*dog", "sea"), minus=("sun",), weight=(1, 2, 0.25), output_folder=str(tmp_path / "first"),
        indice_folder=str(index), num_results=3, where="width < 4", write=("parquet",),
    )  # fmt: skip
    return tmp_path / "first" / "recipe.json"


def table(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "results.parquet")


def test_a_recipe_makes_the_same_selection_from_any_folder(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    done = CliRunner().invoke(cli, ["filter", "--recipe", str(recipe), str(tmp_path / "again")])
    assert done.exit_code == 0, done.output
    assert "may differ" not in done.output
    pd.testing.assert_frame_equal(table(tmp_path / "again"), table(tmp_path / "first"))
    assert json.loads((tmp_path / "again" / "recipe.json").read_text()) == json.loads(recipe.read_text())


@pytest.mark.parametrize("place", ["lists/q.txt", "link/../q.txt", "~/q.txt", "a::b/q.txt"])
def test_a_recipe_finds_the_file_of_queries_from_any_folder(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    for folder in ("lists", "~", "a::b"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    Path(place).write_text("cat\nsea\n")
    clip_filter(queries=place, output_folder="first", indice_folder=str(index), write=("parquet",))
    monkeypatch.chdir("/")

    clip_filter(str(tmp_path / "again"), recipe=str(tmp_path / "first" / "recipe.json"))

    pd.testing.assert_frame_equal(table(tmp_path / "again"), table(tmp_path / "first"))


def test_other_queries_in_the_file_of_a_recipe_are_told_of(tmp_path: Path, index: Path) -> None:
    (tmp_path / "q.txt").write_text("dog\ncat\n")
    clip_filter(queries=str(tmp_path / "q.txt"), output_folder=str(tmp_path / "out"), indice_folder=str(index))
    again = {"recipe": str(tmp_path / "out" / "recipe.json"), "output_folder": str(tmp_path / "again")}
    assert not run_filter(read_config(again)).warnings
    (tmp_path / "q.txt").write_text("sun\n")
    (warning,) = run_filter(read_config(again)).warnings
    assert warning.startswith(f"the recipe was made with another content of {tmp_path / 'q.txt'}: ")


def test_options_beside_a_recipe_win(tmp_path: Path, recipe: Path) -> None:
    hits = clip_filter(str(tmp_path / "again"), recipe=str(recipe), query="rocket", num_results=1)
    assert hits.caption.tolist() == ["rocket"]


def test_another_index_is_asked_with_a_warning(tmp_path: Path, recipe: Path, write_index: WriteIndex) -> None:
    other = write_index(tmp_path / "other", pd.DataFrame({"caption": WORDS[::-1], "width": range(5)}))
    same, differing = (
        run_filter(read_config({"recipe": str(recipe)}, [str(tmp_path / "out"), *rest])) for rest in ([], [str(other)])
    )
    assert same.warnings == []
    assert "made with another index" in differing.warnings[0]


def test_a_recipe_keeps_what_a_selection_hangs_on_and_no_more(recipe: Path, index: Path) -> None:
    kept = json.loads(recipe.read_text())
    assert set(kept) == {"version", "index_fingerprint", "model", "model_fingerprint", "options"}
    assert kept["model"] == "hash:16?size=32"
    assert kept["options"]["indice_folder"] == str(index.resolve())
    assert set(kept["options"]) == {"query", "minus", "weight", "indice_folder", "num_results", "where"}


def change(**values: Any) -> Callable[[dict[str, Any]], str]:
    return lambda recipe: json.dumps(recipe | values)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda _: "{", r"recipe\.json is not valid JSON"),
        (lambda _: "[]", r"recipe\.json cannot be used: expected `object`, got `array`"),
        (change(colour="red"), r"recipe\.json cannot be used: object contains unknown field `colour`"),
        (change(options={"device": "cuda"}), "device is not an option of a recipe"),
        (
            change(options={"query": ["a"], "indice_folder": "x", "num_results": "many"}),
            "num_results takes a whole number",
        ),
    ],
    ids=["broken", "list", "unknown key", "unknown option", "no number"],
)
def test_a_broken_recipe_is_one_sentence(
    tmp_path: Path, recipe: Path, edit: Callable[[dict[str, Any]], str], message: str
) -> None:
    recipe.write_text(edit(json.loads(recipe.read_text())))
    with pytest.raises(ConfigError, match=message):
        clip_filter(str(tmp_path / "again"), recipe=str(recipe))


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the recipe .*no\.json cannot be read: No such file"):
        clip_filter(str(tmp_path / "out"), recipe=str(tmp_path / "no.json"))
