"""open_clip models on torch: any architecture, with published, local, embedded or random weights."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from clip_retrieval.encoder.base import (
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
from clip_retrieval.encoder.engines.gpu import DeviceMemory, Streams
from clip_retrieval.encoder.engines.openclip_published import published_preprocess, resolve_weights
from clip_retrieval.encoder.engines.openclip_tokenizer import (
    check_transformers,
    count_truncated,
    load_tokenizer,
)
from clip_retrieval.encoder.formats.onnx_folder import read_vocabulary
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.encoder.uri import ModelName
from clip_retrieval.errors import EncoderError, first_line

FINGERPRINT_VALUES = 4096  # of each tensor, evenly spread: enough to tell any two trainings apart
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class OpenClipEncoder(EncodesTexts):
    """An open_clip model and its tokenizer on one device."""

    def __init__(self, model: nn.Module, tokenizer: Any, info: EncoderInfo) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.info = info
        self.device = torch.device(info.device)
        self.dtype = DTYPES[info.precision]
        mean, std = (torch.tensor(v, device=self.device) for v in (info.preprocess.mean, info.preprocess.std))
        self.mean, self.std = mean.view(1, 3, 1, 1), std.view(1, 3, 1, 1)
        self.text_encoder = choose_text_encoder(model, tokenizer, self.device)
        self.memory, self.streams = DeviceMemory(info.uri), Streams(self.device)

    @torch.inference_mode()
    def encode_images(self, pixels: Pixels) -> Embeddings:
        check_tower(self.info, "image")
        if not len(pixels):
            return np.zeros((0, self.info.dimension), dtype=np.float32)
        return np.concatenate(list(self.memory.in_parts(lambda part: to_rows(self.features(part)), pixels)))

    @torch.inference_mode()
    def start_images(self, pixels: Pixels) -> Callable[[], Embeddings]:
        """On a GPU all is queued, and the call returns while it works; a batch that does not fit is done in parts."""
        if self.memory.most is None and len(pixels):
            stream = self.streams.next()
            try:
                with stream:
                    features = self.features(pixels)
            except torch.cuda.OutOfMemoryError:
                self.memory.most = max(1, len(pixels) // 2)
            else:
                return lambda: fetch(features, stream)
        rows = self.encode_images(pixels)
        return lambda: rows

    def features(self, pixels: Pixels) -> Tensor:
        """Return unit embeddings, on the device."""
        check_tower(self.info, "image")
        return self.to_length(cast("Any", self.model).encode_image(self.scale(pixels).to(self.dtype)))

    def scale(self, pixels: Pixels) -> Tensor:
        """Return what the image tower takes: float32 [n, 3, s, s], by mean and standard deviation."""
        batch = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device, non_blocking=True)
        return (batch.permute(0, 3, 1, 2).float().div(255) - self.mean) / self.std

    @torch.inference_mode()
    def encode_scaled(self, images: NDArray[np.float32]) -> Embeddings:
        """Encode pictures that are scaled by mean and standard deviation already, [n, 3, s, s]."""
        check_tower(self.info, "image")
        batch = torch.from_numpy(images).to(device=self.device, dtype=self.dtype)
        return to_rows(self.to_length(cast("Any", self.model).encode_image(batch)))

    def to_length(self, features: Tensor) -> Tensor:
        """Return float32 rows of unit length, or those of a raw encoder as they are."""
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
    """Normalise in fp32, whatever the model computes in."""
    return nn.functional.normalize(features.float(), dim=-1)


def to_rows(features: Tensor) -> Embeddings:
    rows = cast("Embeddings", features.cpu().numpy())
    check_finite(rows)
    return rows


def fetch(features: Tensor, stream: AbstractContextManager[object]) -> Embeddings:
    """Wait for the stream that computes them, and copy them to the CPU."""
    with stream:
        return to_rows(features)


def open_openclip(name: ModelName, config: EncoderConfig) -> OpenClipEncoder:
    """Open the model on the config's device; raises EncoderError in one sentence."""
    device = choose_device(config)
    precision = choose_precision(config, device)
    check_architecture(name.architecture)
    name = resolve_weights(name)
    model = create_model(name, config)
    weights_digest = fingerprint(model)  # before the precision changes: it shall be the same in all of them
    model = model.to(device=device, dtype=DTYPES[precision])
    tokenizer = load_tokenizer(name.architecture, config.clip_cache_path)
    folder = name.architecture.removeprefix("local-dir:")
    is_local = folder != name.architecture
    info = EncoderInfo(
        uri=name.uri,
        dimension=embedding_dimension(model, tokenizer, device),
        preprocess=read_preprocess(model),
        fingerprint=weights_digest,
        precision=precision,
        device=device,
        vocabulary=read_vocabulary(Path(folder)) if is_local else None,
        **read_logits(model),
    )
    return OpenClipEncoder(model, tokenizer, info)


def choose_device(config: EncoderConfig) -> str:
    """Return the device to use; raises EncoderError where it cannot be."""
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device)
    return device


def choose_precision(config: EncoderConfig, device: str) -> str:
    if config.precision != "auto":
        return config.precision
    return "fp16" if device.startswith("cuda") else "fp32"


def check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise EncoderError(
            f"device {device} cannot be used: {first_line(error)}; --device cpu works everywhere"
        ) from error


def count_gpus() -> int:
    return torch.cuda.device_count()


def create_model(name: ModelName, config: EncoderConfig) -> nn.Module:
    """Build the model on the CPU, in fp32, and load or make its weights."""
    check_transformers(name.architecture)
    with torch.random.fork_rng(devices=[]), quiet_root(name.kind == "random"):
        torch.manual_seed(name.option("seed", 0))
        try:
            model = open_clip.create_model(
                name.architecture,
                pretrained=name.weights,
                cache_dir=config.clip_cache_path,
                force_preprocess_cfg=published_preprocess(name),
                pretrained_text=False,  # random is random, and other weights cover it
                require_pretrained=name.kind == "open_clip",  # a folder without weights gives random ones else
            )
        except Exception as error:  # open_clip, the hub and torch raise all kinds here
            raise EncoderError(explain_failure(name, error)) from error
    return cast("nn.Module", model.eval())


@contextmanager
def quiet_root(is_quiet: bool) -> Iterator[None]:  # noqa: FBT001 -- reads as what it is
    """Keep open_clip, which logs to the root logger, from warning that random weights are random."""
    root = logging.getLogger()
    level = root.level
    if is_quiet:
        root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def check_architecture(architecture: str) -> None:
    if architecture.startswith("local-dir:"):
        folder = Path(architecture.removeprefix("local-dir:"))
        if not (folder / "open_clip_config.json").exists():
            raise EncoderError(f"{folder} is no open_clip folder: open_clip_config.json is missing")
    elif not architecture.startswith("hf-hub:") and open_clip.get_model_config(architecture) is None:
        near = [known for known in open_clip.list_models() if known.lower().startswith(architecture.lower()[:5])]
        hint = f"near it: {', '.join(near[:8])}" if near else "open_clip.list_models() names all"
        raise EncoderError(f"open_clip has no architecture {architecture!r}; {hint}")


def explain_failure(name: ModelName, error: Exception) -> str:
    weights = name.weights
    if weights is not None and Path(weights).exists():
        return f"{weights} could not be loaded into {name.architecture}: {first_line(error)}"
    if name.architecture.startswith("local-dir:"):
        return f"{name.architecture} could not be loaded: {first_line(error)}"
    if name.kind == "random":
        return f"{name.architecture} could not be built: {first_line(error)}"
    return (
        f"the weights of {name.uri} are not on this machine and could not be fetched ({first_line(error)}). "
        f"Without network: fetch them elsewhere and pass open_clip:{name.architecture}//path/to/checkpoint, set "
        "--clip_cache_path to a folder that holds them, or try the embedded model with --clip_model demo"
    )


def read_logits(model: nn.Module) -> dict[str, Any]:
    """Return what makes logits of cosines, as EncoderInfo names it."""
    scale, bias = (getattr(model, name, None) for name in ("logit_scale", "logit_bias"))
    return {
        "logit_scale": None if scale is None else float(scale.detach().float().exp()),
        "logit_bias": None if bias is None else float(bias.detach().float()),
    }


def read_preprocess(model: nn.Module) -> Preprocess:
    config = open_clip.get_model_preprocess_cfg(model)
    size = config["size"]
    height, width = size if isinstance(size, tuple | list) else (size, size)
    if height != width:
        raise EncoderError(f"this model takes pictures of {width} x {height}; only square ones can be prepared here")
    return Preprocess(
        size=height,
        mean=triple(config["mean"]),
        std=triple(config["std"]),
        interpolation="bilinear" if config.get("interpolation") == "bilinear" else "bicubic",  # random is bicubic too
        resize_mode=config.get("resize_mode", "shortest"),
        fill=config.get("fill_color", 0),
    )


def triple(values: Any) -> tuple[float, float, float]:
    """Return a value for each colour; open_clip takes one number for all too."""
    red, green, blue = values if isinstance(values, tuple | list) else (values,) * 3
    return red, green, blue


@torch.inference_mode()
def embedding_dimension(model: nn.Module, tokenizer: Any, device: str) -> int:
    return int(cast("Any", model).encode_text(tokenizer(["a"]).to(device)).shape[1])


def fingerprint(model: nn.Module) -> str:
    """Return a digest of every weight's name, shape and a spread of its values."""
    digest = hashlib.sha256(b"quick_gelu" if any(isinstance(part, QuickGELU) for part in model.modules()) else b"")
    for name, value in sorted(model.state_dict().items()):
        if name.endswith("num_batches_tracked"):  # of training, no weight
            continue
        flat = value.detach().flatten()
        step = max(1, flat.numel() // FINGERPRINT_VALUES)
        sample = flat[::step].float().numpy()
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(sample.tobytes())
    return digest.hexdigest()[:32]
