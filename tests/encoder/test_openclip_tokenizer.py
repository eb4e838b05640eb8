"""open_clip's tokenizers of all kinds: context, cut texts, errors, and the same ids without transformers."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import tokenizers
import torch
from safetensors.torch import save_file

from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.engines.onnx import OnnxEncoder
from clip_retrieval.encoder.engines.openclip import OpenClipEncoder
from clip_retrieval.encoder.engines.openclip_tokenizer import count_truncated, load_tokenizer
from clip_retrieval.encoder.export.config import ConvertConfig
from clip_retrieval.encoder.export.convert import run_convert
from clip_retrieval.encoder.export.tokenizers import write_tokenizer
from clip_retrieval.encoder.huggingface_tokenizer import HuggingfaceTokenizer
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.errors import EncoderError
from tests.encoder.damage import WAYS

SCRAPS = [
    *(
        "a dog",
        "A  Dog,\tand a CAT!",
        "",
        " ",
        "under_score",
        "it's 'quoted'",
        "naïve café",
        "ÉCOLE",
        "straße",
        "İstanbul",
    ),
    *(
        "日本語のテキスト",
        "한국어",
        "русский текст",
        "עברית",
        "العربية",
        "🐕 🐈",
        "&lt;b&gt; &amp;amp;",
        "[SEP] in it",
        "<pad>",
    ),
    *(
        "schÃ¶n",
        "“curly” quotes…",
        "1,234.5",
        "a-b_c.d",
        "tabs\tand\nlines",
        "\u200bzero\u200bwidth",
        "ﬁne ﬂow",
        "e\u0301",
    ),
]
TEXTS = SCRAPS + [f"{scrap} " * count + "end" for scrap in SCRAPS for count in (2, 9, 40)]
WORDS = "a dog and cat end under score it s quoted naive cafe the of text русский 日 本 語 1 , . ! ' _ - &".split()
MODEL = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
    "custom_text": True,
}
TEXT_CFG = {"context_length": 64, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1, "hf_tokenizer_name": "local"}
SIGLIP = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "tokenizer_kwargs": {"clean": "canonicalize"}}
CLIPA = {
    "no_causal_mask": True,
    "pool_type": "last",
    "context_length": 32,
    "tokenizer_kwargs": {"strip_sep_token": True},
}
LOWER = {"context_length": 16, "tokenizer_kwargs": {"clean": "lower"}}


@pytest.fixture
def no_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make transformers a package that cannot be found or imported."""
    monkeypatch.setitem(sys.modules, "transformers", None)


def write_tokenizer_files(folder: Path, **changes: Any) -> None:
    """Write a tokenizer of few words with BERT's special tokens, as transformers saves one."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: i for i, word in enumerate(special + WORDS)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.NFKC(), tokenizers.normalizers.Lowercase()]
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(special)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **names, **changes}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_model(folder: Path, **text: Any) -> str:
    """Write an open_clip folder with random weights; return its URI."""
    config = MODEL | {"text_cfg": TEXT_CFG | text}
    parts = {key: value for key, value in config.items() if key != "custom_text"}
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(**parts)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return f"open_clip:local-dir:{folder}"


@pytest.mark.parametrize(
    ("architecture", "context"),
    [("ViT-B-32", 77), ("coca_ViT-B-32", 76), ("PE-Core-B-16", 32), ("PE-Core-bigG-14-448", 72), ("MobileCLIP-S1", 77)],
)
def test_the_context_is_that_of_the_architecture(architecture: str, context: int) -> None:
    tokens = load_tokenizer(architecture, None)(["a dog"])
    assert tokens.shape == (1, context)


@pytest.mark.usefixtures("no_transformers")
@pytest.mark.parametrize("architecture", ["nllb-clip-base", "xlm-roberta-base-ViT-B-32"])
@pytest.mark.parametrize("uri", ["random:{}", "open_clip:{}"])
def test_text_towers_that_need_transformers_say_so_before_anything_is_fetched(architecture: str, uri: str) -> None:
    with pytest.raises(EncoderError, match=r"need the package transformers; pip install 'clip-retrieval\[hf\]'"):
        load_encoder(uri.format(architecture))


def new_snapshot(cache: Path, repository: str) -> Path:
    """Write an empty repository in the layout of the hub's cache."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    return folder / "snapshots" / ("0" * 40)


def test_a_tokenizer_in_the_cache_needs_no_config_beside_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "dog": 5}, unk_token="<unk>"))
    snapshot = new_snapshot(tmp_path, "timm/ViT-B-16-SigLIP")
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<unk>").save_pretrained(snapshot)

    tokens = load_tokenizer("ViT-B-16-SigLIP", str(tmp_path))(["dog"])

    assert tokens[0].tolist() == [5] + [0] * 63


ROBERTA = {
    "model_type": "roberta",
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
MT5 = {"model_type": "mt5", "d_model": 24, "d_kv": 8, "num_layers": 1, "num_heads": 2, "d_ff": 32, "vocab_size": 100}


@pytest.mark.parametrize("text_config", [ROBERTA, MT5], ids=["roberta", "mt5"])
def test_a_text_tower_of_transformers_is_found_in_the_cache_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text_config: dict[str, Any]
) -> None:
    pytest.importorskip("transformers")
    texts = {"hf_model_name": "org/texts", "hf_tokenizer_name": "org/texts", "hf_pooler_type": "mean_pooler"}
    vision = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": texts}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tests-roberta", config)
    snapshot = new_snapshot(tmp_path, "org/texts")
    (snapshot / "config.json").write_text(json.dumps(text_config))

    encoder = load_encoder(EncoderConfig(clip_model="random:tests-roberta", clip_cache_path=str(tmp_path)))

    assert encoder.info.dimension == 24


@pytest.mark.parametrize("variant", [SIGLIP, CLIPA], ids=["siglip", "clipa"])
def test_pictures_need_no_tokenizer(tmp_path: Path, variant: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    folder = write_model(tmp_path, **variant)
    pixels = np.zeros((2, 32, 32, 3), dtype=np.uint8)

    encoder = load_encoder(folder)

    assert encoder.info.towers == ("image",)
    assert encoder.encode_images(pixels).shape == (2, 24)
    assert "encodes pictures only" in caplog.text
    with pytest.raises(EncoderError, match=r"pictures do not need it"):
        encoder.encode_texts(["a dog"])


def test_pictures_without_a_tokenizer_become_onnx_and_texts_keep_their_reason(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    folder = write_model(tmp_path, **SIGLIP)
    pixels = np.zeros((2, 32, 32, 3), dtype=np.uint8)

    encoder = load_encoder(EncoderConfig(clip_model=folder, device="cpu", precision="fp32"), workload="bulk")

    assert isinstance(encoder, OnnxEncoder)
    assert encoder.encode_images(pixels) == pytest.approx(load_encoder(folder).encode_images(pixels), abs=1e-4)
    with pytest.raises(EncoderError, match="pictures do not need it"):
        encoder.encode_texts(["a dog"])


def test_a_tokenizer_that_cannot_be_fetched_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="is not on this machine and could not be fetched") as caught:
        load_tokenizer("ViT-B-16-SigLIP", str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_folder_without_its_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"put its tokenizer\.json and tokenizer_config\.json there") as caught:
        load_encoder(write_model(tmp_path, **SIGLIP)).encode_texts(["a dog"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [SIGLIP, CLIPA, LOWER])
def test_local_tokenizers_give_the_same_ids_with_and_without_transformers(tmp_path: Path, text: dict[str, Any]) -> None:
    write_tokenizer_files(tmp_path)
    encoder = load_encoder(write_model(tmp_path, **text))
    assert isinstance(encoder, OpenClipEncoder)
    wanted = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(TEXTS).numpy()
    assert wanted.shape == (len(TEXTS), text.get("context_length", 64))

    (tmp_path / "onnx").mkdir()
    spec = write_tokenizer(encoder, tmp_path / "onnx", is_cut=False)
    ids, truncated = HuggingfaceTokenizer(tmp_path / "onnx", spec).tokenize(TEXTS)

    assert (ids == wanted).all()
    assert encoder.embed_texts(TEXTS).truncated_count == truncated > 0
    assert truncated < len(TEXTS)


@pytest.mark.parametrize("text", [SIGLIP, CLIPA, LOWER])
def test_cut_texts_are_counted_to_the_word(tmp_path: Path, text: dict[str, Any]) -> None:
    write_tokenizer_files(tmp_path)
    encoder = load_encoder(write_model(tmp_path, **text))
    room = text.get("context_length", 64) - 2
    texts = ["dog " * (room - 1), "dog " * room, "dog " * (room + 1), "dog " * 500, "", "dog"]
    assert encoder.embed_texts(texts).truncated_count == 2


def test_a_tokenizer_that_pads_on_the_left_has_no_form_of_its_own(tmp_path: Path) -> None:
    write_tokenizer_files(tmp_path, padding_side="left")
    encoder = load_encoder(write_model(tmp_path, **SIGLIP))
    assert encoder.embed_texts(["dog " * 99, "dog"]).truncated_count == 1
    with pytest.raises(EncoderError, match="has no form outside of transformers"):
        write_tokenizer(encoder, tmp_path, is_cut=False)


def test_clips_mode_keeps_room_for_its_own_tokens() -> None:
    class Inner:
        pad_token_id = 0

        def __call__(self, texts: list[str], **_: Any) -> dict[str, Any]:
            return {"input_ids": [[5] * len(text.split()) for text in texts]}

    class Clips:
        tokenizer, tokenizer_mode, clean_fn = Inner(), "clips", staticmethod(str)

    tokens = torch.from_numpy(np.full((2, 8), 7))
    assert count_truncated(Clips(), ["a b c d e", "a b c d e f"], tokens) == 1


def test_other_tokenizers_count_nothing() -> None:
    assert count_truncated(object(), ["a"], torch.ones(1, 8)) == 0


@pytest.mark.parametrize("has_sums", [True, False])
@pytest.mark.parametrize("damage", WAYS)
def test_a_damaged_tokenizer_of_a_users_folder_is_named(
    converted: Path, tmp_path: Path, damage: Callable[[Path], None], has_sums: bool
) -> None:
    folder = shutil.copytree(converted, tmp_path / "onnx")
    if not has_sums:
        (folder / "sums.json").unlink()
    damage(folder / "tokenizer.json")
    with pytest.raises(EncoderError, match=r"tokenizer\.json .*; convert the model again$"):
        load_encoder(f"onnx:{folder}").encode_texts(["a dog"])


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a tokenizer.json, in ONNX."""
    folder = tmp_path_factory.mktemp("model")
    write_tokenizer_files(folder)
    run_convert(ConvertConfig(source=write_model(folder, **SIGLIP), out=str(folder / "onnx"), to="onnx"))
    assert np.isfinite(load_encoder(f"onnx:{folder / 'onnx'}").encode_texts(["a dog"])).all()
    return folder / "onnx"
