"""open_clip's tokenizers: opened with errors that say what to do, and texts that do not fit counted."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import open_clip
from open_clip.tokenizer import get_clean_fn
from torch import Tensor

from clip_retrieval.encoder.hub_connection import why_not_fetched
from clip_retrieval.errors import EncoderError, first_line

LOCAL = "local-dir:"
CLIPS_ROOM = 3  # tokens that open_clip's mode `clips` reserves


def check_transformers(architecture: str) -> None:
    """Refuse an architecture with a text tower of transformers if that is missing, before weights are fetched.

    If only the tokenizer is of transformers, pictures can be encoded without it.
    """
    if architecture.startswith("hf-hub:"):
        return
    texts = (open_clip.get_model_config(architecture) or {}).get("text_cfg", {})
    if texts.get("hf_model_name") and not has_transformers():
        raise EncoderError(need_transformers(architecture))


def has_transformers() -> bool:
    return importlib.util.find_spec("transformers") is not None


def need_transformers(architecture: str) -> str:
    return f"the texts of {architecture} need the package transformers; pip install 'clip-retrieval[hf]'"


def load_tokenizer(architecture: str, cache: str | None) -> Any:
    """Return open_clip's tokenizer; raises EncoderError in one sentence if it is not on this machine."""
    try:
        return open_clip.get_tokenizer(architecture, cache_dir=cache)
    except ImportError as error:
        raise EncoderError(need_transformers(architecture)) from error
    except Exception as error:  # transformers and the hub raise errors of all kinds here  # noqa: BLE001
        try:
            return load_without_config(architecture, cache)
        except Exception:  # noqa: BLE001 -- the first error is the one to tell
            raise EncoderError(explain(architecture, error)) from error


def load_without_config(architecture: str, cache: str | None) -> Any:
    """Return a tokenizer without a config.json, such as SigLIP's; without network, transformers 5 wants one."""
    from transformers import PretrainedConfig  # noqa: PLC0415 -- an extra

    return open_clip.get_tokenizer(architecture, cache_dir=cache, config=PretrainedConfig())


def explain(architecture: str, error: Exception) -> str:
    if architecture.startswith(LOCAL):
        folder = architecture.removeprefix(LOCAL)
        return (
            f"{folder} has no tokenizer that transformers can read ({first_line(error)}); put its tokenizer.json and "
            "tokenizer_config.json there"
        )
    return (
        f"the tokenizer of {architecture} is not on this machine and could not be fetched ({why_not_fetched(error)}); "
        "without network: fetch it elsewhere and set --clip_cache_path to a hub cache that holds it, or name a folder "
        "with open_clip_config.json, weights and tokenizer.json"
    )


def count_truncated(tokenizer: Any, texts: Sequence[str], tokens: Tensor) -> int:
    """Count the texts that did not fit; only those that fill the context are looked at again."""
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        full = (tokens[:, -1] != 0).nonzero().flatten().tolist()
        room = tokens.shape[1] - 2  # start and end of text
        return sum(len(tokenizer.encode(texts[i])) > room for i in full)
    inner = getattr(tokenizer, "tokenizer", None)
    if not callable(inner):
        return 0
    is_full = (tokens[:, -2:] != inner.pad_token_id).any(dim=1)  # the very last may be a zeroed separator
    return count_long(tokenizer, inner, [texts[i] for i in is_full.nonzero().flatten().tolist()], tokens.shape[1])


def count_long(tokenizer: Any, inner: Any, texts: Sequence[str], context: int) -> int:
    """Count the texts of which transformers' tokenizer `inner` makes more than open_clip keeps."""
    if not texts:
        return 0
    is_clips = getattr(tokenizer, "tokenizer_mode", "") == "clips"
    clean: Any = getattr(tokenizer, "clean_fn", None) or get_clean_fn("canonicalize")  # open_clip's SigLipTokenizer
    found = inner(
        [clean(text) for text in texts],
        add_special_tokens=not is_clips,
        padding=False,
        truncation=False,
        verbose=False,
    )
    return sum(len(ids) > context - (CLIPS_ROOM if is_clips else 0) for ids in found["input_ids"])
