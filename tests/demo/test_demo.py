from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from clip_retrieval import clip_filter
from clip_retrieval.cli import cli
from clip_retrieval.demo.run import GALLERY, QUERIES, DemoResult, run_demo
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.encoder.uri import DEMO_MODEL
from clip_retrieval.errors import QueryError

MEGABYTES = 1_000_000


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return run_demo(str(tmp_path_factory.mktemp("demo")))


def index_of(demo: DemoResult) -> str:
    return demo.indices.index_folder


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_model_and_gallery_are_small_enough_to_ship() -> None:
    assert size_of(DEMO_MODEL) <= 12 * MEGABYTES
    assert size_of(GALLERY) <= 12 * MEGABYTES


def test_the_gallery_has_captions_and_at_least_1500_pictures() -> None:
    names: list[str] = []
    for path in sorted(GALLERY.glob("*.tar")):
        with tarfile.open(path) as tar:
            names += tar.getnames()
    assert sum(name.endswith(".jpg") for name in names) >= 1500
    assert sum(name.endswith(".jpg") for name in names) == sum(name.endswith(".txt") for name in names)


def test_the_demo_embeds_the_whole_gallery(demo: DemoResult) -> None:
    assert demo.summary.stats.sample_count >= 1500
    assert not demo.summary.stats.reasons


def test_each_query_of_the_demo_has_a_right_first_hit_and_a_sheet(demo: DemoResult) -> None:
    for query, answer in zip(QUERIES, demo.answers, strict=True):
        first = answer.table.to_pylist()[0]
        assert set(query.split()) <= set(first["caption"].split())
        assert (Path(answer.output_folder) / "index.html").exists()


@pytest.mark.parametrize("word", ["rocket", "fire", "apple", "flag", "banana", "guitar"])
def test_the_first_hit_of_a_word_is_called_so(demo: DemoResult, word: str, tmp_path: Path) -> None:
    hits = clip_filter(word, str(tmp_path), index_of(demo), num_results=1)
    assert word in hits["caption"][0].split()


def test_a_query_of_unknown_words_is_refused(demo: DemoResult, tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="knows no word of 'quantum chromodynamics'"):
        clip_filter("quantum chromodynamics", str(tmp_path), index_of(demo))


def test_a_query_with_some_unknown_words_says_which(demo: DemoResult, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["filter", "a crimson heart", str(tmp_path), index_of(demo)])
    assert done.exit_code == 0
    assert "the model does not know: crimson" in done.output


def test_an_unknown_word_changes_nothing() -> None:
    plain, padded = load_encoder("demo").encode_texts(["heart", "crimson heart"])
    assert float(plain @ padded) > 0.9


def test_a_picture_finds_itself_first(demo: DemoResult, tmp_path: Path) -> None:
    with tarfile.open(GALLERY / "00000.tar") as tar:
        tar.extract("00007.jpg", tmp_path, filter="data")
    hits = clip_filter(str(tmp_path / "00007.jpg"), str(tmp_path / "out"), index_of(demo), num_results=1)
    assert hits["image_path"][0] == "00007"
    assert hits["similarity"][0] == pytest.approx(1, abs=2e-3)


def test_the_demo_encoder_answers_in_unit_rows() -> None:
    rows = load_encoder("demo").encode_texts(["dog", "fire", ""])
    assert rows.shape == (3, 128)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)
