from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from clip_retrieval.encoder.engines.causal_text import choose_text_encoder, encode_in_groups
from clip_retrieval.encoder.uri import DEMO_MODEL

TEXTS = ["dog", "", "a photo of a red apple on a blue background", "word " * 100, "smiling face", "a b c d e f"] * 9


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    name = f"local-dir:{DEMO_MODEL}"
    return open_clip.create_model(name).eval(), open_clip.get_tokenizer(name)


def test_cut_captions_get_the_embeddings_of_padded_ones_in_their_order(demo: tuple[Any, Any]) -> None:
    model, tokenizer = demo
    tokens = tokenizer(TEXTS)
    with torch.inference_mode():
        cosine = nn.functional.cosine_similarity(encode_in_groups(model, tokens), model.encode_text(tokens))
    assert float(cosine.min()) >= 0.99999


def test_causal_towers_are_cut(demo: tuple[Any, Any]) -> None:
    model, tokenizer = demo
    assert choose_text_encoder(model, tokenizer, torch.device("cpu")) != model.encode_text


def test_towers_that_look_at_the_padding_are_not_cut(demo: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = demo
    monkeypatch.setattr(model, "attn_mask", None)
    assert choose_text_encoder(model, tokenizer, torch.device("cpu")) == model.encode_text
