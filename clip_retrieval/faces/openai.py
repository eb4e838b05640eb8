"""What OpenAI's `clip` has at its top: models by name, and token ids."""

from __future__ import annotations

import logging

from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.encoder.uri import OPENAI_NAMES
from clip_retrieval.faces.arrays import Array, wrap
from clip_retrieval.faces.model import Clip
from clip_retrieval.faces.pictures import ImagePreprocess
from clip_retrieval.faces.texts import CONTEXT_LENGTH, make_tokens

logger = logging.getLogger(__name__)


def available_models() -> list[str]:
    """Return the names that need no prefix; `clip-retrieval models list` has all."""
    return [*OPENAI_NAMES, "demo"]


def load(
    name: str,
    device: object = "auto",
    jit: bool = False,  # noqa: FBT001, FBT002 -- OpenAI's signature
    download_root: str | None = None,
) -> tuple[Clip, ImagePreprocess]:
    """Open a model, an OpenAI name or anything that --clip_model takes, and its preprocessing of pictures.

    `device` is a name or a torch.device. Raises EncoderError if there is no such model, or its weights are not here
    and cannot be fetched.
    """
    if jit:
        logger.warning("jit=True changes nothing here: a model runs on the engine that is fastest for its device")
    model = Clip(load_encoder(EncoderConfig(clip_model=str(name), device=str(device), clip_cache_path=download_root)))
    return model, model.preprocess


def tokenize(texts: str | list[str], context_length: int = CONTEXT_LENGTH, truncate: bool = False) -> Array:  # noqa: FBT001, FBT002 -- OpenAI's signature
    """Return the token ids int32 [n, context_length] of CLIP's byte-pair vocabulary, zeros after the end of text.

    A text that is too long is a TooManyTokensError, which is a RuntimeError, or is cut if `truncate` is set.
    """
    return wrap(make_tokens(texts, context_length, truncate=truncate))
