"""open_clip models on torch: any architecture, with published, local, embedded or random weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clip_retrieval.encoder.base import (
    BOTH_TOWERS,
    Embeddings,
    EncoderInfo,
    EncodesTexts,
    Pixels,
    TextEmbeddings,
    Tokens,
    check_finite,
    check_texts,
    check_tower,
)
from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.engines.causal_text import choose_text_encoder
from clip_retrieval.encoder.engines.gpu import DeviceMemory, Streams, with_patches
from clip_retrieval.encoder.engines.openclip_model import (
    check_architecture,
    create_model,
    embedding_dimension,
    fingerprint,
    read_logits,
    read_preprocess,
)
from clip_retrieval.encoder.engines.openclip_published import asks_hub, resolve_weights
from clip_retrieval.encoder.engines.openclip_tokenizer import count_truncated, load_tokenizer
from clip_retrieval.encoder.formats.onnx_folder import read_vocabulary
from clip_retrieval.encoder.hub_connection import hub_or_cache
from clip_retrieval.encoder.uri import ModelName
from clip_retrieval.errors import EncoderError, first_line

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class OpenClipEncoder(EncodesTexts):
    """An open_clip model and its tokenizer on one device."""

    def __init__(self, model: nn.Module, tokenizer: Any, info: EncoderInfo) -> None:
        self.model = with_patches(model) if info.device.startswith("cuda") else model
        self.architecture: str | None = None  # open_clip's name of it, if it has one
        self.tokenizer = tokenizer
        self.info = info
        self.device = torch.device(info.device)
        self.dtype = DTYPES[info.precision]
        mean, std = (torch.tensor(v, device=self.device) for v in (info.preprocess.mean, info.preprocess.std))
        self.mean, self.std = mean.view(1, 3, 1, 1), std.view(1, 3, 1, 1)
        if tokenizer is not None:
            self.text_encoder = choose_text_encoder(model, tokenizer, self.device)
        self.memory, self.streams = DeviceMemory(info.uri), Streams(self.device)

    @torch.inference_mode()
    def encode_images(self, pixels: Pixels) -> Embeddings:
        check_tower(self.info, "image")
        if not len(pixels):
            return np.zeros((0, self.info.dimension), dtype=np.float32)
        return np.concatenate(list(self.memory.in_parts(self.encode_part, pixels)))

    def encode_part(self, pixels: Pixels) -> Embeddings:
        return to_rows(self.features(as_tensor(pixels).to(self.device)))

    @torch.inference_mode()
    def start_images(self, pixels: Pixels) -> Callable[[], Embeddings]:
        """On a GPU the work is queued, and the call returns at once; a batch that does not fit is encoded in parts."""
        check_tower(self.info, "image")
        if self.memory.most is None and len(pixels):
            try:
                wait = self.streams.start(self.features, as_tensor(pixels))
            except torch.cuda.OutOfMemoryError:
                self.memory.most = max(1, len(pixels) // 2)
            else:
                return lambda: to_rows(wait())
        rows = self.encode_images(pixels)
        return lambda: rows

    @torch.inference_mode()
    def expect_batches(self, batch_size: int) -> None:
        """Prepare for many batches of this size: a GPU records its work for one, and replays it."""
        if self.device.type == "cuda" and "image" in self.info.towers and self.memory.most is None:
            side = self.info.preprocess.size
            self.streams.record(self.features, (batch_size, side, side, 3))

    def features(self, pixels: Tensor) -> Tensor:
        """Return unit embeddings of pixels on the device."""
        return self.to_length(cast("Any", self.model).encode_image(self.scale(pixels).to(self.dtype)))

    def scale(self, pixels: Tensor) -> Tensor:
        """Return the input of the image tower: float32 [n, 3, s, s], scaled by mean and standard deviation."""
        return (pixels.permute(0, 3, 1, 2).float().div(255) - self.mean) / self.std

    @torch.inference_mode()
    def encode_scaled(self, images: NDArray[np.float32]) -> Embeddings:
        """Encode pictures that are already scaled by mean and standard deviation, [n, 3, s, s]."""
        check_tower(self.info, "image")
        batch = torch.from_numpy(images).to(device=self.device, dtype=self.dtype)
        return to_rows(self.to_length(cast("Any", self.model).encode_image(batch)))

    def to_length(self, features: Tensor) -> Tensor:
        """Return float32 rows of unit length, or those of a raw encoder unchanged."""
        return features.float() if self.is_raw else to_unit(features)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> TextEmbeddings:
        check_tower(self.info, "text")
        check_texts(texts)
        if not texts:
            return TextEmbeddings(np.zeros((0, self.info.dimension), dtype=np.float32), 0)
        tokens = self.tokenizer(list(texts))
        rows = to_rows(self.to_length(self.text_encoder(tokens.to(self.device))))
        return TextEmbeddings(rows, count_truncated(self.tokenizer, texts, tokens))

    @torch.inference_mode()
    def encode_tokens(self, tokens: Tokens) -> Embeddings:
        check_tower(self.info, "text")
        return to_rows(
            self.to_length(self.text_encoder(torch.from_numpy(np.asarray(tokens, dtype=np.int64)).to(self.device)))
        )


def to_unit(features: Tensor) -> Tensor:
    """Normalize in fp32, also for models that compute in another format."""
    return nn.functional.normalize(features.float(), dim=-1)


def to_rows(features: Tensor) -> Embeddings:
    rows = cast("Embeddings", features.cpu().numpy())
    check_finite(rows)
    return rows


def as_tensor(pixels: Pixels) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels))


def open_openclip(name: ModelName, config: EncoderConfig) -> OpenClipEncoder:
    """Open the model on the config's device; raises EncoderError in one sentence."""
    device = choose_device(config)
    precision = choose_precision(config, device)
    check_architecture(name.architecture)
    name = resolve_weights(name, config.clip_cache_path)
    with hub_or_cache() if asks_hub(name) else nullcontext():
        model = create_model(name, config)
        tokenizer, no_text_reason = find_tokenizer(name, config)
    weights_digest = fingerprint(model)  # before the precision changes, so that it is the same for all of them
    model = model.to(device=device, dtype=DTYPES[precision])
    folder = name.architecture.removeprefix("local-dir:")
    is_local = folder != name.architecture
    info = EncoderInfo(
        uri=name.uri,
        dimension=embedding_dimension(model, device),
        preprocess=read_preprocess(model, name.uri),
        fingerprint=weights_digest,
        precision=precision,
        device=device,
        towers=BOTH_TOWERS if tokenizer is not None else ("image",),
        no_text_reason=no_text_reason,
        vocabulary=read_vocabulary(Path(folder)) if is_local else None,
        **read_logits(model),
    )
    encoder = OpenClipEncoder(model, tokenizer, info)
    encoder.architecture = name.architecture
    return encoder


def find_tokenizer(name: ModelName, config: EncoderConfig) -> tuple[Any, str | None]:
    """Return the tokenizer, or why it is not here: pictures can be encoded without it."""
    try:
        return load_tokenizer(name.architecture, config.clip_cache_path), None
    except EncoderError as error:
        logger.warning("%s encodes pictures only: %s", name.uri, error)
        return None, str(error)


def choose_device(config: EncoderConfig) -> str:
    """Return the device to use; raises EncoderError if it cannot be used."""
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device)
    return device


def choose_precision(config: EncoderConfig, device: str) -> str:
    """Return torch's number format; int8 is only for converted models, so torch uses fp32 instead."""
    is_cuda = device.startswith("cuda")
    if config.precision == "int8" and is_cuda:
        raise EncoderError(f"--precision int8 is for CPUs; on {device} use fp16, bf16 or fp32")
    if config.precision in ("auto", "int8"):
        return "fp16" if is_cuda else "fp32"
    return config.precision


def check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise EncoderError(
            f"device {device} cannot be used: {first_line(error)}; --device cpu works everywhere"
        ) from error


def count_gpus() -> int:
    return torch.cuda.device_count()
