from __future__ import annotations

import csv
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from clip_retrieval.commands.reports.tools import print_benchmark
from clip_retrieval.demo.run import GALLERY
from clip_retrieval.errors import ConfigError, EncoderError
from clip_retrieval.options import build_config
from clip_retrieval.tools.benchmark import BenchmarkResult, run_benchmark
from clip_retrieval.tools.benchmark_report import write_result
from clip_retrieval.tools.config import BenchmarkConfig

MODEL, OTHER = "hash:16?size=32", "hash:8?size=32"
Write = Callable[[Path, int], Path]


@pytest.fixture
def classes(tmp_path: Path, write_jpegs: Write) -> Path:
    """Give a folder with 3 cats of which one is broken, 5 dogs, and no bird."""
    write_jpegs(tmp_path / "data" / "cat", 3)
    write_jpegs(tmp_path / "data" / "dog", 5)
    (tmp_path / "data" / "cat" / "001.jpg").write_bytes(b"broken")
    (tmp_path / "data" / "bird").mkdir()
    return tmp_path / "data"


def run(folder: Path, **options: object) -> BenchmarkResult:
    given = {"folder": str(folder), "clip_model": (MODEL,), "batch_size": 2, **options}
    return run_benchmark(build_config(BenchmarkConfig, given))


def test_every_picture_is_counted_and_what_is_not_is_named(classes: Path) -> None:
    result = run(classes)
    (score,) = result.models
    assert [(found.name, found.images) for found in score.accuracy.classes] == [("cat", 2), ("dog", 5)]
    assert score.accuracy.images == 7
    assert [(failure.image, failure.reason) for failure in result.failures] == [(f"{classes}/cat/001.jpg", "decode")]
    assert result.notes == ("folders without pictures are not classes: bird",)


def test_the_result_does_not_depend_on_the_batch_size(classes: Path) -> None:
    assert run(classes).models[0].accuracy == run(classes, batch_size=32).models[0].accuracy


def test_with_fewer_than_five_classes_the_second_share_is_of_all_of_them(classes: Path) -> None:
    result = run(classes)
    assert result.top == 2
    assert result.models[0].accuracy.micro_5 == 1.0


def test_the_embedded_model_tells_pizzas_from_hearts(tmp_path: Path) -> None:
    pizza: list[tuple[str, bytes]] = []
    rest: list[tuple[str, bytes]] = []
    for tar_path in sorted(GALLERY.glob("*.tar")):
        with tarfile.open(tar_path) as tar:
            captions = {m.name[:-4]: tar.extractfile(m).read().decode() for m in tar if m.name.endswith(".txt")}  # type: ignore[union-attr]
            for key, caption in captions.items():
                if "pizza" in caption or "heart" in caption:
                    found = tar.extractfile(f"{key}.jpg")
                    assert found is not None
                    (pizza if "pizza" in caption else rest).append((key, found.read()))
    for name, pictures in (("pizza", pizza), ("heart", rest)):
        (tmp_path / name).mkdir()
        for key, data in pictures:
            (tmp_path / name / f"{key}.jpg").write_bytes(data)
    accuracy = run(tmp_path, clip_model=("demo",)).models[0].accuracy
    assert accuracy.micro_1 > 0.8


def test_max_per_class_takes_the_first_ones(classes: Path) -> None:
    (score,) = run(classes, max_per_class=1).models
    assert [found.images for found in score.accuracy.classes] == [1, 1]


def test_several_models_are_compared_in_their_order(classes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(classes, clip_model=(MODEL, OTHER), template=("a {}", "one {}"))
    assert [score.model for score in result.models] == [MODEL, OTHER]
    assert all(score.speed.images_per_second > 0 and score.speed.load_seconds >= 0 for score in result.models)
    assert all(score.parameters is None and score.bytes_on_disk is None for score in result.models)
    print_benchmark(result)
    assert "1 picture could not be used:" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".md", ".csv", ".json"])
def test_the_result_goes_into_a_file(classes: Path, tmp_path: Path, suffix: str) -> None:
    result = run(classes, clip_model=(MODEL, OTHER))
    path = tmp_path / f"result{suffix}"
    write_result(result, str(path))
    text = path.read_text(encoding="utf-8")
    if suffix == ".json":
        assert json.loads(text) == json.loads(json.dumps(result.to_json()))
    elif suffix == ".csv":
        rows = list(csv.DictReader(text.splitlines()))
        assert [row["model"] for row in rows] == [MODEL, OTHER]
        assert float(rows[0]["acc@1"]) == pytest.approx(result.models[0].accuracy.micro_1, abs=1e-4)
        assert rows[0]["images"] == "7"
    else:
        assert f"| {MODEL} | 7 |" in text
        assert "| cat | 2 |" in text
        assert "* folders without pictures are not classes: bird\n* not used: " in text


def test_an_output_of_another_kind_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match=r"^output must end in one of .md, .csv, .json, not a.xlsx$"):
        build_config(BenchmarkConfig, {"folder": "in", "output": "a.xlsx"})


def test_a_wrong_name_among_the_models_is_refused_before_anything_runs() -> None:
    with pytest.raises(EncoderError, match="there is no model 'ViT-Z/99'"):
        build_config(BenchmarkConfig, {"folder": "in", "clip_model": (MODEL, "ViT-Z/99")})
