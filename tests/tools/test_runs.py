"""similarity, zsl, extract and models from config to result, with weight-free and embedded encoders."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from clip_retrieval import load_encoder
from clip_retrieval.cli import cli
from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.engines import sessions
from clip_retrieval.encoder.engines.open import open_engine
from clip_retrieval.encoder.images import decode_image
from clip_retrieval.encoder.uri import DEMO_MODEL, parse_uri
from clip_retrieval.errors import ClipRetrievalError, ConfigError, SourceError
from clip_retrieval.options import build_config
from clip_retrieval.process.resources import count_cores
from clip_retrieval.tools.config import ExtractConfig, ModelInfoConfig, SimilarityConfig, ZslConfig
from clip_retrieval.tools.extract import run_extract
from clip_retrieval.tools.model_list import list_models
from clip_retrieval.tools.models import bytes_on_disk, describe_model
from clip_retrieval.tools.similarity import run_similarity
from clip_retrieval.tools.zero_shot import run_zsl

MODEL = "hash:16?size=32"
Write = Callable[[Path, int], Path]


def direct_rows(folder: Path) -> np.ndarray[Any, Any]:
    encoder = load_encoder(MODEL)
    pictures = [decode_image(path.read_bytes()) for path in sorted(folder.glob("*.jpg"))]
    return encoder.encode_images(np.stack([encoder.info.preprocess(picture) for picture in pictures]))


def options(**values: object) -> dict[str, object]:
    return {"clip_model": MODEL, "batch_size": 2, "decode": "exact", **values}


def test_similarity_is_each_picture_with_each_text(tmp_path: Path, write_jpegs: Write) -> None:
    write_jpegs(tmp_path, 5)
    texts = ("a dog, running", "cat", "bird")
    result = run_similarity(build_config(SimilarityConfig, options(image=(str(tmp_path),), text=texts)))
    expected = direct_rows(tmp_path) @ load_encoder(MODEL).encode_texts(texts).T
    np.testing.assert_allclose(result.cosines, expected, atol=1e-6)
    assert result.texts == texts
    assert [Path(name).name for name in result.images] == [f"00{i}.jpg" for i in range(5)]
    np.testing.assert_allclose(json.loads(json.dumps(result.to_json()))["cosines"], expected, atol=1e-6)


def test_verbose_tells_how_long_each_part_took(tmp_path: Path, write_jpegs: Write) -> None:
    write_jpegs(tmp_path, 1)
    given = options(image=(str(tmp_path),), verbose=1)
    similar = run_similarity(build_config(SimilarityConfig, {**given, "text": ("dog",)}))
    labeled = run_zsl(build_config(ZslConfig, {**given, "label": ("dog", "cat")}))
    number = r"\d+\.\d{3} s for "
    for result, what in ((similar, "texts"), (labeled, "labels")):
        parts = ("took ", "opening the model, ", f"{what}, ", "pictures, ")
        assert re.fullmatch(number.join(parts) + number + "everything", result.notes[-1])
    assert not run_similarity(build_config(SimilarityConfig, {**given, "text": ("dog",), "verbose": 0})).notes


@pytest.mark.parametrize("command", ["similarity", "zsl"])
def test_threads_are_as_many_as_clip_cpps_option_says(
    tmp_path: Path, write_jpegs: Write, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    write_jpegs(tmp_path, 1)
    seen: list[int] = []
    open_session = sessions.open_onnxruntime

    def noting(path: Path, way: sessions.Way) -> sessions.Session:
        seen.append(count_cores())
        return open_session(path, way)

    monkeypatch.setattr(sessions, "open_onnxruntime", noting)
    flags = ["-m", "demo", "-t", "1", "-v", "1", "--text", "dog", "--text", "cat", "--image", str(tmp_path / "000.jpg")]
    done = CliRunner().invoke(cli, [command, *flags], catch_exceptions=False)
    assert (done.exit_code, seen) == (0, [1, 1])
    assert " s for opening the model" in done.output


@pytest.mark.parametrize("given", [{"image": "a.jpg"}, {"text": "dog"}, {}])
def test_similarity_needs_both_sides(given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"^similarity is between pictures and texts: give at least one --image and"):
        build_config(SimilarityConfig, given)


def test_an_unreadable_picture_is_named_and_the_rows_keep_to_their_names(tmp_path: Path, write_jpegs: Write) -> None:
    write_jpegs(tmp_path, 3)
    (tmp_path / "001.jpg").write_bytes(b"broken")
    result = run_similarity(build_config(SimilarityConfig, options(image=(str(tmp_path),), text=("dog",))))
    assert [Path(name).name for name in result.images] == ["000.jpg", "002.jpg"]
    assert [(Path(failure.image).name, failure.reason) for failure in result.failures] == [("001.jpg", "decode")]
    (tmp_path / "001.jpg").unlink()
    expected = direct_rows(tmp_path) @ load_encoder(MODEL).encode_texts(["dog"]).T
    np.testing.assert_allclose(result.cosines, expected, atol=1e-6)


def test_pictures_of_which_none_is_readable_are_an_error(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(SourceError, match=r"none of the 2 pictures can be used; the first is .*a.jpg: no picture"):
        run_zsl(build_config(ZslConfig, options(image=(str(tmp_path),), label=("dog",))))
    with pytest.raises(SourceError, match=r"the picture cannot be used: .*b.jpg: no picture format recognised"):
        run_zsl(build_config(ZslConfig, options(image=(f"{tmp_path}/b.jpg",), label=("dog",))))


def test_zsl_is_a_softmax_over_the_labels_of_scale_times_cosine(tmp_path: Path, write_jpegs: Write) -> None:
    write_jpegs(tmp_path, 3)
    (tmp_path / "labels.txt").write_text("cat\nbird\ndog\n")
    given = options(image=(str(tmp_path),), label=("dog",), labels_file=str(tmp_path / "labels.txt"), top_k=2)
    result = run_zsl(build_config(ZslConfig, given))
    assert result.labels == ("dog", "cat", "bird")
    assert result.notes == ("left out: 1 repeated label",)
    logits = 100 * (direct_rows(tmp_path) @ load_encoder(MODEL).encode_texts(["dog", "cat", "bird"]).T)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(result.probabilities, powers / powers.sum(1, keepdims=True), atol=1e-5)
    for row in range(3):
        assert result.best(row) == np.argsort(-logits[row])[:2].tolist()
    assert [len(image["labels"]) for image in result.to_json()["images"]] == [2, 2, 2]


def test_zsl_with_sigmoid_judges_each_pair_and_says_that_the_model_was_not_made_for_it(
    tmp_path: Path, write_jpegs: Write
) -> None:
    write_jpegs(tmp_path, 1)
    given = options(image=(str(tmp_path),), label=("dog", "cat"), scores="sigmoid")
    result = run_zsl(build_config(ZslConfig, given))
    np.testing.assert_allclose(result.probabilities, 1 / (1 + np.exp(-100 * result.cosines)), rtol=1e-3)
    assert result.notes == (f"{MODEL} has no logit bias, and was not trained for sigmoid; 0 is used",)


def test_templates_change_the_label_rows_and_are_averaged(tmp_path: Path, write_jpegs: Write) -> None:
    write_jpegs(tmp_path, 1)
    given = options(image=(str(tmp_path),), label=("dog", "cat"), template=("a {}, big", "one {}"))
    result = run_zsl(build_config(ZslConfig, given))
    rows = load_encoder(MODEL).encode_texts(["a dog, big", "one dog"])
    mean = rows.mean(0) / np.linalg.norm(rows.mean(0))
    np.testing.assert_allclose(result.cosines[0, 0], direct_rows(tmp_path)[0] @ mean, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"template": ("a photo",)}, "the template 'a photo' has no place for the label; write {} where it goes"),
        ({"label": ()}, "there is no label to choose: give --label for each, or --labels_file"),
        ({"image": ()}, "there is nothing to label: give at least one --image"),
        ({"top_k": 0}, "top_k must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"scores": "max"}, "scores takes one of auto, softmax, sigmoid, not 'max'"),
    ],
)
def test_zsl_options_that_cannot_be_are_one_sentence(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(ZslConfig, {"image": ("a.jpg",), "label": ("dog",)} | given)
    assert str(caught.value) == message


def test_a_labels_file_without_labels_is_an_error(tmp_path: Path, write_jpegs: Write) -> None:
    write_jpegs(tmp_path, 1)
    (tmp_path / "labels.txt").write_text("\n\n")
    with pytest.raises(SourceError, match=r"labels.txt holds no label; write one per line"):
        run_zsl(build_config(ZslConfig, options(image=(str(tmp_path),), labels_file=f"{tmp_path}/labels.txt")))


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 32])
def test_extract_writes_unit_rows_in_the_order_of_the_names(
    tmp_path: Path, write_jpegs: Write, batch_size: int
) -> None:
    folder, out = write_jpegs(tmp_path / "in", 5), tmp_path / "out"
    texts = ("a\nb", "c, d", "ü")
    given = options(output_folder=str(out), image=(str(folder),), text=texts, batch_size=batch_size)
    result = run_extract(build_config(ExtractConfig, given))
    rows = np.load(out / "image_embeddings.npy")
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, direct_rows(folder), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.load(out / "text_embeddings.npy"), load_encoder(MODEL).encode_texts(texts))
    assert lines(out / "images.jsonl") == [{"image": f"{folder}/00{i}.jpg"} for i in range(5)]
    assert lines(out / "texts.jsonl") == [{"text": text} for text in texts]
    assert json.loads((out / "summary.json").read_text()) == result.to_json()
    assert sorted(path.name for path in out.iterdir()) == [
        "image_embeddings.npy", "images.jsonl", "summary.json", "text_embeddings.npy", "texts.jsonl",
    ]  # fmt: skip


def test_extract_names_what_it_could_not_use_and_leaves_nothing_of_an_earlier_run(
    tmp_path: Path, write_jpegs: Write
) -> None:
    folder, out = write_jpegs(tmp_path / "in", 3), tmp_path / "out"
    run_extract(build_config(ExtractConfig, options(output_folder=str(out), text=("dog",))))
    (out / "mine.txt").write_text("stays")
    (folder / "001.jpg").write_bytes(b"")
    result = run_extract(build_config(ExtractConfig, options(output_folder=str(out), image=(str(folder),))))
    failure = {"image": f"{folder}/001.jpg", "reason": "empty", "detail": "the file has no bytes"}
    assert json.loads((out / "failures.json").read_text()) == [failure]
    assert (result.image_count, result.text_count, len(result.failures)) == (2, 0, 1)
    assert len(np.load(out / "image_embeddings.npy")) == len(lines(out / "images.jsonl")) == 2
    assert not (out / "text_embeddings.npy").exists()
    assert not (out / "texts.jsonl").exists()
    assert (out / "mine.txt").read_text() == "stays"


def test_extract_without_a_row_fails_and_keeps_what_was_there(tmp_path: Path) -> None:
    out, bad = tmp_path / "out", tmp_path / "bad.jpg"
    run_extract(build_config(ExtractConfig, options(output_folder=str(out), text=("dog",))))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    bad.write_bytes(b"broken")
    with pytest.raises(SourceError, match=r"the picture cannot be used: .*bad.jpg"):
        run_extract(build_config(ExtractConfig, options(output_folder=str(out), image=(str(bad),))))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_extract_reads_texts_from_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\n")
    given = options(output_folder=str(tmp_path / "out"), text=("zero",), text_file=(str(tmp_path / "a.txt"),))
    assert run_extract(build_config(ExtractConfig, given)).text_count == 3
    assert [line["text"] for line in lines(tmp_path / "out" / "texts.jsonl")] == ["zero", "one", "two"]


def test_extract_of_nothing_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^there is nothing to embed: give at least one --image, --text or"):
        build_config(ExtractConfig, {"output_folder": "out"})
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(SourceError, match=r"there is no text in .*a.txt; write one per line"):
        run_extract(build_config(ExtractConfig, options(output_folder="out", text_file=(f"{tmp_path}/a.txt",))))


def test_texts_that_were_cut_are_told(tmp_path: Path, write_jpegs: Write) -> None:
    write_jpegs(tmp_path, 1)
    given = {"image": (str(tmp_path),), "text": ("dog " * 100, "dog"), "clip_model": "demo", "device": "cpu"}
    result = run_similarity(build_config(SimilarityConfig, given))
    assert result.notes == ("cut to the model's context length: 1 text",)


def test_the_list_of_models_has_names_that_parse() -> None:
    found = list_models()
    assert "ViT-L/14@336px" in found.openai
    assert "laion2b_s34b_b79k" in found.open_clip["ViT-B-32"]
    assert set(found.to_json()) == {"openai", "embedded", "open_clip", "forms"}
    for name in (*found.openai, *found.embedded, "open_clip:ViT-B-32/laion2b_s34b_b79k"):
        assert parse_uri(name).uri == name


EMBEDDED = f"open_clip:local-dir:{DEMO_MODEL}"


def test_facts_of_the_embedded_weights() -> None:
    found = describe_model(build_config(ModelInfoConfig, {"clip_model": EMBEDDED, "device": "cpu"})).to_json()
    wanted = {"uri": EMBEDDED, "kind": "open_clip", "dimension": 128, "image_size": 64, "context_length": 77,
              "towers": ["image", "text"], "logit_bias": None, "precision": "fp32", "device": "cpu"}  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted
    assert found["logit_scale"] == pytest.approx(59.4977, abs=1e-3)
    through_torch = open_engine(parse_uri(EMBEDDED), EncoderConfig(clip_model=EMBEDDED, device="cpu"))
    assert found["parameters"] == sum(value.numel() for value in through_torch.model.parameters())  # type: ignore[attr-defined]
    assert found["bytes_on_disk"] > 10_000_000
    json.dumps(found)


def test_what_is_not_known_of_a_model_is_null() -> None:
    found = describe_model(build_config(ModelInfoConfig, {"clip_model": MODEL}))
    facts = found.to_json()
    assert (facts["parameters"], facts["bytes_on_disk"], facts["format"], facts["context_length"]) == (None,) * 4
    assert replace(found, format="gguf").to_json()["format"] == "gguf"


def test_a_checkpoint_file_beside_an_architecture_has_a_size(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"1234")
    assert bytes_on_disk(parse_uri(f"open_clip:ViT-B-32/{tmp_path}/weights.pt")) == 4


def test_a_model_that_is_not_is_one_sentence() -> None:
    with pytest.raises(ClipRetrievalError, match=r"^there is no model 'nonsense'; a model is"):
        describe_model(build_config(ModelInfoConfig, {"model": "nonsense"}))
