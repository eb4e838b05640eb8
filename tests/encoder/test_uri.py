"""What model names mean."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest

from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.devices import list_devices
from clip_retrieval.encoder.uri import DEMO_MODEL, OPENAI_NAMES, parse_uri
from clip_retrieval.errors import EncoderError


@pytest.mark.parametrize("prefix", ["", "openai_clip:"])
@pytest.mark.parametrize("name", OPENAI_NAMES)
def test_openai_names_are_quickgelu_architectures_of_open_clip(prefix: str, name: str) -> None:
    parsed = parse_uri(prefix + name)

    assert (parsed.kind, parsed.weights) == ("open_clip", "openai")
    assert parsed.architecture.endswith("-quickgelu")
    assert "openai" in open_clip.list_pretrained_tags_by_model(parsed.architecture)
    assert open_clip.get_model_config(parsed.architecture)["quick_gelu"]


def test_a_tag_follows_the_first_slash() -> None:
    parsed = parse_uri("open_clip:ViT-B-32/laion2b_s34b_b79k")

    assert (parsed.kind, parsed.architecture, parsed.weights) == ("open_clip", "ViT-B-32", "laion2b_s34b_b79k")


def test_an_architecture_alone_names_no_weights() -> None:
    assert parse_uri("open_clip:ViT-B-32").weights is None


def test_a_file_follows_two_slashes(tmp_path: Path) -> None:
    checkpoint = tmp_path / "weights.pt"
    checkpoint.write_bytes(b"")

    assert parse_uri(f"open_clip:ViT-B-32/{checkpoint}").weights == str(checkpoint)


def test_a_relative_file_follows_one_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert parse_uri("open_clip:ViT-B-32/your/path.pt").weights == "your/path.pt"


@pytest.mark.parametrize("place", ["hf-hub:org/name", "local-dir:/some/folder"])
def test_hub_names_and_folders_are_handed_on_whole(place: str) -> None:
    assert parse_uri(f"open_clip:{place}").architecture == place


@pytest.mark.parametrize("name", ["org/name", "openai/clip-vit-base-patch32", "org/name@main", "org/name@refs/pr/1"])
def test_transformers_names_that_are_no_path_are_on_the_hub(name: str) -> None:
    parsed = parse_uri(f"hf_clip:{name}")

    assert (parsed.kind, parsed.architecture) == ("checkpoint", f"hf-hub:{name}")


def test_a_path_comes_before_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)

    assert parse_uri("hf_clip:org/name").architecture == "org/name"


def test_demo_is_the_embedded_folder() -> None:
    assert (parse_uri("demo").kind, parse_uri("demo").architecture) == ("onnx", str(DEMO_MODEL))


def test_random_and_hash_take_numbers() -> None:
    assert parse_uri("random:ViT-S-32?seed=3").option("seed", 0) == 3
    assert parse_uri("random:ViT-S-32").option("seed", 0) == 0
    assert parse_uri("hash:16?size=8&seed=2").options == (("size", 8), ("seed", 2))


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("ViT-B-32", "there is no model 'ViT-B-32'"),
        ("", "there is no model ''"),
        ("open_clip:", "there is no model 'open_clip:'"),
        ("random:", "there is no model 'random:'"),
        ("open_clip:ViT-B-32//no/such/file.pt", "there is no file /no/such/file.pt"),
        ("hash:many", "hash: takes a dimension"),
        ("hash:0", "hash: takes a dimension"),
        ("hash:16?size", "name=number pairs"),
        ("hash:16?size=big", "name=number pairs"),
        ("hash:16?size=0", "size"),
        ("hash:16?size=-1", "size"),
        ("hash:16?sise=32", "sise"),
        ("random:ViT-S-32?sed=1", "sed"),
        ("hash:16?seed=-1", "seed"),
        ("hf_clip:/no/such/folder", "open_clip:hf-hub"),
        ("hf_clip:./folder", "hf_clip:ORG/NAME"),
        ("hf_clip:folder", "hf_clip:ORG/NAME"),
        ("gguf:name", "ORG/NAME"),
        ("nm:model", "DeepSparse"),
        ("ja_clip:model", "multilingual"),
    ],
)
def test_other_names_are_refused_with_a_hint(uri: str, words: str) -> None:
    with pytest.raises(EncoderError) as caught:
        parse_uri(uri)

    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_devices_are_a_list_between_commas() -> None:
    assert list_devices(EncoderConfig(clip_model="hash:16", device="cpu, cpu")) == ["cpu", "cpu"]
    assert list_devices(EncoderConfig(clip_model="hash:16")) == ["cpu"]


@pytest.mark.parametrize(
    ("query", "pictures"),
    [
        ("?mean=0,0,0&std=1,1,1", (("mean", (0, 0, 0)), ("std", (1, 1, 1)))),
        ("?mean=0.5", (("mean", (0.5, 0.5, 0.5)),)),
        ("", ()),
    ],
)
@pytest.mark.parametrize("model", ["MobileCLIP-S1/tag", "hf-hub:org/name", "local-dir:folder"])
def test_mean_and_std_may_be_given(model: str, query: str, pictures: object) -> None:
    plain = parse_uri(f"open_clip:{model}")

    parsed = parse_uri(f"open_clip:{model}{query}")

    assert parsed.pictures == pictures
    assert (parsed.architecture, parsed.weights) == (plain.architecture, plain.weights)


@pytest.mark.parametrize("query", ["?mean=0,0", "?std=0", "?mean=a", "?mean=nan", "?std=1,1,-1"])
def test_mean_and_std_of_another_form_are_refused(query: str) -> None:
    with pytest.raises(EncoderError, match="must be one number or three"):
        parse_uri(f"open_clip:MobileCLIP-S1/tag{query}")
