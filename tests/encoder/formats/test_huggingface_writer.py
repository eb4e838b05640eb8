"""Folders for transformers: read back by our own reader, and by transformers itself if it is installed."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from clip_retrieval.encoder.formats.checkpoint import Checkpoint, Family
from clip_retrieval.encoder.formats.gguf import Towers
from clip_retrieval.encoder.formats.huggingface import read_huggingface
from clip_retrieval.encoder.formats.huggingface_writer import write_huggingface
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.errors import EncoderError, StorageError

VISION: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 48, "head_width": 16, "layers": 2}
TEXT: dict[str, Any] = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3}
CONFIG: dict[str, Any] = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": True}
GELU = {"quick_gelu": False}
TANH = {"act_kwargs": {"approximate": "tanh"}}
PREPROCESS = Preprocess(32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear")
OPENAI = Preprocess(224, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
VARIANTS: list[dict[str, Any]] = [  # as our reader writes them, also mlp_ratio
    {},
    GELU,
    GELU | {"vision_cfg": VISION | TANH},
    GELU | {"text_cfg": TEXT | TANH, "vision_cfg": VISION | TANH},
    {"vision_cfg": VISION | {"head_width": 24}, "text_cfg": TEXT | {"heads": 8}},
    {"vision_cfg": VISION | {"mlp_ratio": 70.5 / 48}, "text_cfg": TEXT | {"mlp_ratio": 101.5 / 32}},
    {"vision_cfg": VISION | {"norm_kwargs": {"eps": 1e-2}}, "text_cfg": TEXT | {"norm_kwargs": {"eps": 1e-3}}},
    {"text_cfg": TEXT | {"vocab_size": 49410, "pool_type": "eos", "eos_id": 49407}},
    {"text_cfg": TEXT | {"vocab_size": 49410}},
]
TEXT_FILES = {"vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"}


def random_model(config: Mapping[str, Any]) -> open_clip.CLIP:
    """Return a model without any initial value: norms and biases are random too."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**config).eval()
    for value in model.state_dict().values():
        value.add_(0.2 * torch.randn_like(value))
    return model


def to_checkpoint(model: open_clip.CLIP, config: Mapping[str, Any]) -> Checkpoint:
    tensors = {name: value.numpy() for name, value in model.state_dict().items()}
    return Checkpoint("source.pt", "clip", config, tensors, PREPROCESS)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return to_checkpoint(random_model(CONFIG), CONFIG)


def tower_of(checkpoint: Checkpoint, tower: str) -> Checkpoint:
    """Return what one tower's file would be read as."""
    kept = {
        k: v
        for k, v in checkpoint.tensors.items()
        if k == "logit_scale" or k.startswith("visual.") == (tower == "image")
    }
    other = "vision_cfg" if tower == "text" else "text_cfg"
    config = {key: value for key, value in checkpoint.model_config.items() if key != other}
    return replace(checkpoint, tensors=kept, model_config=config, preprocess=PREPROCESS if tower == "image" else OPENAI)


def assert_equal(found: Checkpoint, wanted: Checkpoint) -> None:
    assert found.model_config == wanted.model_config
    assert found.preprocess == wanted.preprocess
    assert found.tensors.keys() == wanted.tensors.keys()
    for name, array in wanted.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], array, err_msg=name)
        assert found.tensors[name].dtype == array.dtype


def assert_close(found: Tensor, wanted: Tensor, bound: float = 1e-5) -> None:
    assert (found - wanted).abs().max() / wanted.abs().max() <= bound


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Round trips through our own reader.


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
def test_what_is_written_is_read_back(tmp_path: Path, variant: int) -> None:
    config = CONFIG | VARIANTS[variant]
    wanted = to_checkpoint(random_model(config), config)
    write_huggingface(wanted, tmp_path / "out")
    assert_equal(read_huggingface(tmp_path / "out"), wanted)
    assert names_in(tmp_path / "out") == TEXT_FILES | {"config.json", "model.safetensors", "preprocessor_config.json"}


@pytest.mark.parametrize("tower", ["text", "image"])
def test_one_tower_is_read_back(tmp_path: Path, checkpoint: Checkpoint, tower: Towers) -> None:
    wanted = tower_of(checkpoint, tower)
    write_huggingface(checkpoint, tmp_path / "cut", towers=tower)
    write_huggingface(wanted, tmp_path / "lone")  # both of one
    for folder in (tmp_path / "cut", tmp_path / "lone"):
        assert_equal(read_huggingface(folder), wanted)
        assert "config.json" in names_in(folder)
        assert ("vocab.json" in names_in(folder)) == (tower == "text")
        assert ("preprocessor_config.json" in names_in(folder)) == (tower == "image")


@pytest.mark.parametrize(
    "preprocess",
    [
        replace(PREPROCESS, interpolation="nearest"),
        replace(PREPROCESS, interpolation="bicubic", resize_mode="squash"),
        replace(OPENAI, size=32),
    ],
)
def test_the_way_to_pixels_is_read_back(tmp_path: Path, checkpoint: Checkpoint, preprocess: Preprocess) -> None:
    write_huggingface(replace(checkpoint, preprocess=preprocess), tmp_path / "out")
    assert read_huggingface(tmp_path / "out").preprocess == preprocess


def test_a_configuration_in_open_clips_own_words_means_the_same_afterwards(tmp_path: Path) -> None:
    vision = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "mlp_ratio": 4.0, "pool_type": "tok"}
    vision |= {"ls_init_value": None, "patch_dropout": 0.3, "act_kwargs": {"approximate": "none"}}
    text = {"context_length": 20, "width": 64, "layers": 2, "pool_type": "argmax", "eos_id": 2, "proj_type": "linear"}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    original = random_model(config)
    write_huggingface(to_checkpoint(original, config), tmp_path / "out")
    encoder = load_encoder(str(tmp_path / "out"))
    tokens = open_clip.SimpleTokenizer(context_length=20)(["a dog", "fire " * 30])
    with torch.inference_mode():
        wanted = original.encode_text(tokens, normalize=True).numpy()
    assert encoder.encode_texts(["a dog", "fire " * 30]) == pytest.approx(wanted, abs=1e-6)


def test_f16_makes_halves_of_matrices_alone(tmp_path: Path, checkpoint: Checkpoint) -> None:
    write_huggingface(checkpoint, tmp_path / "out", dtype="f16")
    found = read_huggingface(tmp_path / "out")
    for name, array in checkpoint.tensors.items():
        wanted = array.astype(np.float16 if array.ndim > 1 else np.float32)
        np.testing.assert_array_equal(found.tensors[name], wanted, err_msg=name)
        assert found.tensors[name].dtype == wanted.dtype
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float16"


@pytest.mark.parametrize(
    ("change", "name"),
    [({}, "quick_gelu"), (GELU, "gelu"), (GELU | {"vision_cfg": VISION | TANH}, "gelu_pytorch_tanh")],
)
def test_the_activation_has_the_name_of_torchs_own_function(
    tmp_path: Path, checkpoint: Checkpoint, change: Mapping[str, Any], name: str
) -> None:
    write_huggingface(replace(checkpoint, model_config={**CONFIG, **change}), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vision_config"]["hidden_act"] == name


def test_the_library_of_safetensors_reads_the_weights(tmp_path: Path, checkpoint: Checkpoint) -> None:
    write_huggingface(checkpoint, tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        query = file.get_tensor("text_model.encoder.layers.2.self_attn.k_proj.bias")
        projection = file.get_tensor("visual_projection.weight")
    np.testing.assert_array_equal(query, checkpoint.tensors["transformer.resblocks.2.attn.in_proj_bias"][32:64])
    np.testing.assert_array_equal(projection, checkpoint.tensors["visual.proj"].T)


def test_the_vocabulary_and_the_merges_are_those_of_open_clip(tmp_path: Path, checkpoint: Checkpoint) -> None:
    reference = open_clip.SimpleTokenizer()
    write_huggingface(checkpoint, tmp_path / "out", towers="text")
    vocabulary = json.loads((tmp_path / "out" / "vocab.json").read_text(encoding="utf-8"))
    assert [vocabulary.pop(token) for token in ("<|startoftext|>", "<|endoftext|>")] == [49406, 49407]
    assert vocabulary == {token: i for token, i in reference.encoder.items() if i < 49406}
    first, *merges = (tmp_path / "out" / "merges.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert first.startswith("#version")
    assert [tuple(merge.split(" ")) for merge in merges] == list(reference.bpe_ranks)


# What transformers' CLIP cannot express.


def vary(checkpoint: Checkpoint, tower: str, change: Mapping[str, Any]) -> Checkpoint:
    config = {**checkpoint.model_config, tower: {**checkpoint.model_config[tower], **change}}
    return replace(checkpoint, model_config=config)


@pytest.mark.parametrize(
    ("tower", "change", "message"),
    [
        ("vision_cfg", {"layers": [1, 1, 1, 1]}, "a ModifiedResNet as its image encoder"),
        ("vision_cfg", {"pool_type": "avg"}, "pool_type avg in its vision_cfg"),
        ("vision_cfg", {"timm_model_name": "vit"}, "timm_model_name vit"),
        ("vision_cfg", {"norm_kwargs": {"eps": 1e-6, "bias": False}}, "norm_kwargs"),
        ("text_cfg", {"pool_type": "last"}, "pool_type last in its text_cfg"),
        ("text_cfg", {"pool_type": "eos"}, "pool_type eos in its text_cfg"),  # whose eos_id is 2
        ("text_cfg", {"pool_type": "eos", "eos_id": 7}, "pool_type eos in its text_cfg"),
        ("text_cfg", {"no_causal_mask": True}, "no_causal_mask True in its text_cfg"),
        ("text_cfg", {"act_kwargs": {"approximate": "tanh"}}, "act_kwargs .* in its text_cfg"),  # and QuickGELU
        ("text_cfg", {"act_kwargs": {"slope": 2}}, "act_kwargs .* in its text_cfg"),
    ],
)
def test_other_architectures_are_refused(
    tmp_path: Path, checkpoint: Checkpoint, tower: str, change: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(EncoderError, match=rf"source\.pt has {message}.*no place; write it with --to onnx") as caught:
        write_huggingface(vary(checkpoint, tower, change), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    other: Towers = "text" if tower == "vision_cfg" else "image"
    write_huggingface(vary(checkpoint, tower, change), tmp_path / "out", towers=other)  # which is unchanged


def with_tensors(checkpoint: Checkpoint, **changes: Any) -> Checkpoint:
    tensors = {**checkpoint.tensors, **{name.replace("__", "."): value for name, value in changes.items()}}
    return replace(checkpoint, tensors={name: value for name, value in tensors.items() if value is not None})


def test_other_tensors_and_pictures_are_refused(tmp_path: Path, checkpoint: Checkpoint) -> None:
    mixer: Family = "mixer"
    extra = np.zeros(2, np.float32)
    cases = [
        (replace(checkpoint, family=mixer), "is a Mixer CLIP, .* --to onnx"),
        (with_tensors(checkpoint, logit_bias=extra), "has the tensor logit_bias, for"),
        (with_tensors(checkpoint, visual__more=extra), r"has the tensor visual\.more, for"),
        (with_tensors(checkpoint, ln_final__bias=None), r"does not hold ln_final\.bias"),
        (with_tensors(checkpoint, logit_scale=None), "does not hold logit_scale"),
        (replace(checkpoint, preprocess=replace(PREPROCESS, resize_mode="longest")), "pictures that are padded"),
        (replace(checkpoint, preprocess=replace(PREPROCESS, size=36)), "not a square of whole patches"),
        (with_tensors(checkpoint, token_embedding__weight=np.zeros((99, 32), np.float32)), "fewer than the 49408"),
    ]
    for case, message in cases:
        with pytest.raises(EncoderError, match=message) as caught:
            write_huggingface(case, tmp_path / "out")
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_tower_that_is_not_there_is_refused(tmp_path: Path, checkpoint: Checkpoint) -> None:
    with pytest.raises(EncoderError, match="has no image encoder to write; leave the choice of tower out"):
        write_huggingface(tower_of(checkpoint, "text"), tmp_path / "out", towers="image")


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, checkpoint: Checkpoint) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"exists already .* name another place, or remove it"):
        write_huggingface(checkpoint, tmp_path)
    assert names_in(tmp_path) == {"mine.txt"}


def test_a_run_that_fails_midway_leaves_nothing(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def fail(folder: Path, _: int) -> None:
        written.extend(names_in(folder))
        raise KeyboardInterrupt

    monkeypatch.setattr("clip_retrieval.encoder.formats.huggingface_writer.write_tokenizer", fail)
    with pytest.raises(KeyboardInterrupt):
        write_huggingface(checkpoint, tmp_path / "out")
    assert "model.safetensors" in written
    assert not list(tmp_path.iterdir())


# Against transformers itself, if it is installed.


TEXTS = [
    *("a photo of a dog", "A Photo of a DOG!!! 1234", "don't we'll they're I've I'd I'm it's", "", "   ", "x" * 300),
    *(
        "\t tabs \n and lines",
        "e\u0301 É ſ K",
        "naïve café 日本語",
        "🙂👩‍👩‍👧",
        "word " * 100,
        "1,000.5 €",
        "100% #1 @home",
    ),
    *("snake_case and-kebab", "ünïcödé ñandú", "Привет, мир", "שלום עולם", "مرحبا", "हिन्दी में", "ภาษาไทย", "한국어"),
    *(
        "a.b.c",
        "(brackets) [and] {braces}",
        """'single' and "double" quotes""",
        "½ ² ₃",
        "a  b   c",
        "≤ ≥ ≠",
        "straße",
        "Σίσυφος",
    ),
    "photo of a café " * 12,
]


def seeded_texts(count: int) -> list[str]:
    """Return words of letters from many alphabets; nothing that ftfy would repair."""
    rng = random.Random(0)
    blocks = (range(0x61, 0x7B), range(0x430, 0x450), range(0x3B1, 0x3C0), range(0x4E00, 0x4F00), range(0x30, 0x3A))
    return [
        " ".join("".join(chr(rng.choice(rng.choice(blocks))) for _ in range(5)) for _ in range(4)) for _ in range(count)
    ]


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
def test_transformers_gets_the_embeddings_of_open_clip(tmp_path: Path, variant: int) -> None:
    config = CONFIG | VARIANTS[variant]
    original = random_model(config)
    write_huggingface(to_checkpoint(original, config), tmp_path / "out")
    model, report = transformers.CLIPModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "out")
    theirs = tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="pt")
    ours = open_clip.SimpleTokenizer(context_length=20)(TEXTS)
    with torch.inference_mode():
        wanted = model.eval()(pixel_values=PIXELS, **theirs)
        assert_close(original.encode_image(PIXELS, normalize=True), wanted.image_embeds)
        assert_close(original.encode_text(ours, normalize=True), wanted.text_embeds)
        assert model.logit_scale == original.logit_scale


@pytest.mark.parametrize("variant", [0, 5, 6, 8])
def test_transformers_gets_the_embeddings_of_a_lone_tower(tmp_path: Path, variant: int) -> None:
    config = CONFIG | VARIANTS[variant]
    original = random_model(config)
    checkpoint = to_checkpoint(original, config)
    write_huggingface(checkpoint, tmp_path / "text", towers="text")
    write_huggingface(checkpoint, tmp_path / "image", towers="image")
    kinds = {"text": transformers.CLIPTextModelWithProjection, "image": transformers.CLIPVisionModelWithProjection}
    models = {}
    for tower, kind in kinds.items():
        models[tower], report = kind.from_pretrained(tmp_path / tower, output_loading_info=True)
        assert not report["missing_keys"]
        assert set(report["unexpected_keys"]) == {"logit_scale"}
    tokens = open_clip.SimpleTokenizer(context_length=20)(TEXTS)
    with torch.inference_mode():
        assert_close(models["text"](input_ids=tokens).text_embeds, original.encode_text(tokens))
        assert_close(models["image"](pixel_values=PIXELS).image_embeds, original.encode_image(PIXELS))


def test_the_tokenizer_of_transformers_gives_the_same_ids(tmp_path: Path, checkpoint: Checkpoint) -> None:
    write_huggingface(checkpoint, tmp_path / "out", towers="text")
    ours = open_clip.SimpleTokenizer(context_length=20)
    for name in ("CLIPTokenizer", "AutoTokenizer"):
        tokenizer = getattr(transformers, name).from_pretrained(tmp_path / "out")
        assert (len(tokenizer), tokenizer.model_max_length) == (49408, 20)
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (49406, 49407, 49407)
        assert tokenizer.unk_token_id == 49407
        for text in TEXTS + seeded_texts(40):
            wanted = ours([text])[0].tolist()
            assert tokenizer(text, truncation=True)["input_ids"] == wanted[: wanted.index(49407) + 1], text


def test_the_processor_of_transformers_makes_the_same_pixels(tmp_path: Path, checkpoint: Checkpoint) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)  # nothing to resize: torchvision does not do it bit for bit as Pillow
    write_huggingface(checkpoint, tmp_path / "out", towers="image")
    processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path / "out")
    found = np.asarray(processor(image, return_tensors="np")["pixel_values"])[0]
    mean, std = np.array(PREPROCESS.mean), np.array(PREPROCESS.std)
    assert found.transpose(1, 2, 0) == pytest.approx((PREPROCESS(image) / 255 - mean) / std, abs=1e-5)


def test_transformers_takes_f16_as_what_it_is(tmp_path: Path, checkpoint: Checkpoint) -> None:
    write_huggingface(checkpoint, tmp_path / "half", dtype="f16")
    write_huggingface(checkpoint, tmp_path / "whole")
    assert transformers.CLIPModel.from_pretrained(tmp_path / "half").dtype == torch.float16
    assert transformers.CLIPModel.from_pretrained(tmp_path / "whole").dtype == torch.float32
