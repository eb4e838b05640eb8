"""Which words of a text a small model does not know."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from clip_retrieval.encoder.base import EncoderInfo
from clip_retrieval.encoder.engines.open import local_place
from clip_retrieval.encoder.formats.onnx_folder import read_vocabulary
from clip_retrieval.encoder.uri import parse_uri

SMALL_WORDS = frozenset(
    (
        "a an and the of in on at to with without for from by or is are emoji icon picture photo image drawing small"
    ).split()
)


def words_of(uri: str) -> frozenset[str] | None:
    """Return the words that a model in a folder was trained on, without opening it; None if nothing says so."""
    folder = local_place(parse_uri(uri))
    return read_vocabulary(folder) if folder.is_dir() else None


def find_unknown_words(text: str, vocabulary: Collection[str] | None) -> tuple[list[str], bool]:
    """Return the words that the model was never trained on, and whether it knows any of the others.

    Without a known vocabulary, no word is unknown.
    """
    if vocabulary is None:
        return [], True
    words = re.findall(r"[^\W_]+", text.lower())
    unknown = [word for word in words if word not in vocabulary and word not in SMALL_WORDS]
    return unknown, any(word in vocabulary for word in words)


def describe_unknown_words(texts: Sequence[str], info: EncoderInfo) -> str | None:
    """Return a remark on the texts whose words the model does not know; None if it knows them all."""
    unknown = sorted({word for text in texts for word in find_unknown_words(text, info.vocabulary)[0]})
    if not unknown:
        return None
    shown = ", ".join(unknown[:10]) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
    return f"the model {info.uri} was not trained on these words, and answers at random to them: {shown}"
