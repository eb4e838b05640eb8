from __future__ import annotations

import random
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from clip_retrieval.encoder.engines.causal_text import choose_text_encoder, encode_in_groups, find_causal_tower
from clip_retrieval.encoder.uri import DEMO_MODEL

TEXTS = ["dog", "", "a photo of a red apple on a blue background", "word " * 100, "smiling face", "a b c d e f"] * 9
TEXT = {"vocab_size": 49408, "width": 64, "heads": 2, "layers": 3}
VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32}
DECODER = {"context_length": 76, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
CPU = torch.device("cpu")


def captions(count: int = 60) -> list[str]:
    rng = random.Random(0)
    words = "a the of on dog cat man beach photograph red small running umbrella in with unbelievable".split()
    return [" ".join(rng.choices(words, k=rng.randint(4, 18))) for _ in range(count)]


def build(kind: Any = open_clip.CustomTextCLIP, **text: Any) -> Any:
    """Build a small model with every weight away from its start, so that a missing part shows."""
    torch.manual_seed(0)
    extra = {"multimodal_cfg": DECODER} if kind is open_clip.CoCa else {}
    model = kind(embed_dim=32, vision_cfg=VISION, text_cfg=TEXT | text, **extra).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return model


def tokenize(model: Any, texts: list[str]) -> Tensor:
    tokens: Tensor = open_clip.SimpleTokenizer(context_length=getattr(model, "text", model).context_length)(texts)
    return tokens


def least_cosine(model: Any, tokens: Tensor) -> float:
    tower = find_causal_tower(model)
    assert tower is not None
    with torch.inference_mode():
        cosine = nn.functional.cosine_similarity(encode_in_groups(tower, tokens), model.encode_text(tokens))
    return float(cosine.min())


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    name = f"local-dir:{DEMO_MODEL}"
    return open_clip.create_model(name).eval(), open_clip.get_tokenizer(name)


def test_cut_captions_get_the_embeddings_of_padded_ones_in_their_order(demo: tuple[Any, Any]) -> None:
    model, tokenizer = demo
    assert least_cosine(model, tokenizer(TEXTS)) >= 0.99999


def test_towers_that_look_at_the_padding_are_not_cut(demo: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = demo
    monkeypatch.setattr(model, "attn_mask", None)
    assert choose_text_encoder(model, tokenizer, CPU) == model.encode_text


@pytest.mark.parametrize("kind", [open_clip.CLIP, open_clip.CustomTextCLIP])
@pytest.mark.parametrize(
    "text",
    [
        {},
        {"context_length": 32},
        {"pool_type": "eos", "eos_id": 49407},
        {"pool_type": "eos", "eos_id": 320},  # `a`, which some captions lack: open_clip then takes the first token
        {"proj_bias": True, "norm_kwargs": {"eps": 1e-3}, "act_kwargs": {"approximate": "tanh"}},
        {"proj_type": "none"},
        {"ls_init_value": 0.1, "qk_norm": True},
    ],
)
def test_causal_towers_are_cut_and_give_the_same(kind: Any, text: dict[str, Any]) -> None:
    model = build(kind, **text)
    tokens = tokenize(model, captions())
    assert least_cosine(model, tokens) >= 0.99999
    chosen = choose_text_encoder(model, lambda texts: tokenize(model, texts), CPU)
    assert chosen != model.encode_text
    with torch.inference_mode():
        assert nn.functional.cosine_similarity(chosen(tokens), model.encode_text(tokens)).min() >= 0.99999


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (open_clip.CustomTextCLIP, {"no_causal_mask": True}),  # MobileCLIP
        (open_clip.CLIP, {"no_causal_mask": True}),
        (open_clip.CustomTextCLIP, {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}),  # SigLIP
        (open_clip.CustomTextCLIP, {"pool_type": "last"}),
        (open_clip.CLIP, {"pool_type": "first"}),
        (open_clip.CoCa, {"context_length": 76, "embed_cls": True, "output_tokens": True}),
    ],
)
def test_other_towers_stay_whole(kind: Any, text: dict[str, Any]) -> None:
    model = build(kind, **text)
    assert find_causal_tower(model) is None
    assert choose_text_encoder(model, lambda texts: tokenize(model, texts), CPU) == model.encode_text


def test_a_tower_that_gives_something_else_when_cut_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    original = model.text.transformer.forward
    monkeypatch.setattr(
        model.text.transformer, "forward", lambda x, attn_mask: original(x, attn_mask) + x.mean(1, keepdim=True)
    )
    assert find_causal_tower(model) is not None
    assert choose_text_encoder(model, lambda texts: tokenize(model, texts), CPU) == model.encode_text
