"""Models that come as a Checkpoint: OpenAI archives, transformers folders, GGUF files on torch; Mixer on numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray

from clip_retrieval.encoder.base import (
    Embeddings,
    Encoder,
    EncoderInfo,
    EncodesTexts,
    Pixels,
    StartsNothing,
    TextEmbeddings,
    Tokens,
    check_texts,
)
from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.engines.openclip import (
    DTYPES,
    OpenClipEncoder,
    choose_device,
    choose_precision,
)
from clip_retrieval.encoder.engines.state_dict import explain_loading, list_names
from clip_retrieval.encoder.formats.checkpoint import Checkpoint
from clip_retrieval.encoder.formats.hub import read_named
from clip_retrieval.encoder.formats.mixer import MixerTowers
from clip_retrieval.encoder.tokenizer import BpeTokenizer
from clip_retrieval.encoder.uri import ModelName
from clip_retrieval.errors import EncoderError, first_line


def open_checkpoint(name: ModelName, config: EncoderConfig) -> Encoder:
    """Read the file or folder and open it; raises EncoderError in one sentence."""
    checkpoint = read_named(name.architecture, config.clip_cache_path)
    if checkpoint.family == "mixer":
        return MixerEncoder(checkpoint, name.uri)
    device = choose_device(config)
    precision = choose_precision(config, device)
    model = build_model(checkpoint)
    info = EncoderInfo(
        uri=name.uri,
        dimension=int(checkpoint.model_config["embed_dim"]),
        preprocess=checkpoint.preprocess,
        fingerprint=checkpoint.fingerprint(),
        precision=precision,
        device=device,
        towers=checkpoint.towers,
        logit_scale=checkpoint.logit_scale,
    )
    tokenizer = open_clip.SimpleTokenizer(context_length=checkpoint.context_length)
    return OpenClipEncoder(model.to(device=device, dtype=DTYPES[precision]), tokenizer, info)


def build_model(checkpoint: Checkpoint) -> open_clip.CLIP:
    """Build open_clip's module and load the tensors; a tower that the file lacks keeps its initial weights."""
    config = {**SMALLEST_TOWERS, **checkpoint.model_config}
    try:
        model = open_clip.CLIP(**config)
    except (RuntimeError, ValueError, TypeError, AssertionError, ArithmeticError) as error:
        raise EncoderError(
            f"{checkpoint.source} describes a model that cannot be built: {first_line(error)}"
        ) from error
    state = {name: torch.from_numpy(np.array(value)) for name, value in checkpoint.tensors.items()}
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise EncoderError(
            f"{checkpoint.source} does not fit the model that it describes: {explain_loading(error)}"
        ) from error
    lacking = [name for name in missing if is_of_present_tower(name, checkpoint)]
    if lacking or unexpected:
        named = [list_names(kind, names) for kind, names in (("missing", lacking), ("unexpected", unexpected)) if names]
        raise EncoderError(f"{checkpoint.source} does not fit the model that it describes: {'; '.join(named)}")
    return model.eval()


# What open_clip needs for a tower that the file does not have.
SMALLEST_TOWERS: Mapping[str, Any] = {
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


def is_of_present_tower(name: str, checkpoint: Checkpoint) -> bool:
    if name in ("logit_scale", "logit_bias"):
        return False
    return checkpoint.has_image if name.startswith("visual.") else checkpoint.has_text


class MixerEncoder(EncodesTexts, StartsNothing):
    """A Mixer CLIP: texts keep their 77 ids and zero padding, since its text tower mixes over all of them."""

    def __init__(self, checkpoint: Checkpoint, uri: str) -> None:
        self.towers = MixerTowers(checkpoint)
        self.tokenizer = BpeTokenizer(int(checkpoint.model_config["context_length"]))
        self.info = EncoderInfo(
            uri=uri,
            dimension=int(checkpoint.model_config["embed_dim"]),
            preprocess=checkpoint.preprocess,
            fingerprint=checkpoint.fingerprint(),
            precision="fp32",
            device="cpu",
            logit_scale=checkpoint.logit_scale,
        )

    def encode_images(self, pixels: Pixels) -> Embeddings:
        return self.encode_scaled(self.info.preprocess.scale(pixels))

    def encode_scaled(self, images: NDArray[np.float32]) -> Embeddings:
        """Encode pictures that are already scaled by mean and standard deviation, [n, 3, s, s]."""
        return self.finish(self.towers.encode_image(images))

    def embed_texts(self, texts: Sequence[str]) -> TextEmbeddings:
        check_texts(texts)
        tokens, truncated_count = self.tokenizer.tokenize(texts)
        return TextEmbeddings(self.encode_tokens(tokens), truncated_count)

    def encode_tokens(self, tokens: Tokens) -> Embeddings:
        return self.finish(self.towers.encode_text(tokens))
