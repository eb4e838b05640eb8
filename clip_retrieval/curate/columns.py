"""What `label` computes of a block of rows: each part gives some columns, null where the row has no embedding."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clip_retrieval.curate.embedded import Floats, Ids, unit
from clip_retrieval.curate.heads import Head
from clip_retrieval.encoder.base import EncoderInfo
from clip_retrieval.tools.scores import logits, sigmoid

BACKGROUND_ROWS = 2048  # of a sample that rows are compared with to find outliers
NEAREST = 10  # background rows that an outlier is far from
WORD = re.compile(r"\w{2,}")
WORDS_IN_NAME = 3
NAMED_BY = 0.02  # least share of a cluster's captions that contain a word of its name


@dataclass(frozen=True, eq=False)
class Block:
    """Some rows: their numbers, unit embeddings, and the embeddings of the other modality if asked for."""

    first: int
    rows: Floats  # [n, d], unit length
    others: Floats | None

    @property
    def filled(self) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = self.rows.any(axis=1)
        return found


class ColumnPart(Protocol):
    """Columns that are computed together."""

    @property
    def schema(self) -> pa.Schema: ...

    def compute(self, block: Block) -> list[pa.Array]: ...


def numbers(values: NDArray[Any], is_there: NDArray[np.bool_], kind: pa.DataType) -> pa.Array:
    """Return a column; null where `is_there` is false."""
    return pa.array(values, kind, mask=~is_there)


@dataclass(frozen=True, eq=False)
class Labels:
    """The best of some labels, and its probability."""

    name: str
    labels: Sequence[str]
    prompts: Floats  # [labels, d]
    info: EncoderInfo
    squash: Literal["softmax", "sigmoid"]
    each: bool

    @property
    def schema(self) -> pa.Schema:
        more = [(f"{self.name}.{label}", pa.float32()) for label in self.labels] if self.each else []
        return pa.schema([(self.name, pa.string()), (f"{self.name}_probability", pa.float32()), *more])

    def compute(self, block: Block) -> list[pa.Array]:
        scores = logits(block.rows @ self.prompts.T, self.info)
        best = scores.argmax(axis=1)
        highest = scores[np.arange(len(scores)), best]
        if self.squash == "sigmoid":
            shares = sigmoid(scores) if self.each else scores
            probabilities = sigmoid(highest)
        else:
            shares = np.exp(scores - highest[:, None])
            sums = shares.sum(axis=1)
            shares /= sums[:, None]
            probabilities = 1 / sums
        words = pa.DictionaryArray.from_arrays(pa.array(best, mask=~block.filled), pa.array(self.labels, pa.string()))
        found = [words.cast(pa.string()), numbers(probabilities, block.filled, pa.float32())]
        if self.each:
            found += [numbers(shares[:, number], block.filled, pa.float32()) for number in range(len(self.labels))]
        return found


@dataclass(frozen=True)
class Similarity:
    """The cosine of a picture and its caption."""

    schema: pa.Schema = pa.schema([("image_text_similarity", pa.float32())])

    def compute(self, block: Block) -> list[pa.Array]:
        assert block.others is not None
        is_there = block.filled & block.others.any(axis=1)
        return [numbers(np.einsum("nd,nd->n", block.rows, block.others), is_there, pa.float32())]


@dataclass(frozen=True, eq=False)
class HeadScores:
    """The scores of a head."""

    head: Head

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([(name, pa.float32()) for name in self.head.columns])

    def compute(self, block: Block) -> list[pa.Array]:
        scores = self.head.score(block.rows)
        return [numbers(column, block.filled, pa.float32()) for column in scores.T]


@dataclass(frozen=True, eq=False)
class Outlier:
    """How far a row is from the nearest rows of a sample."""

    background: Floats  # [m, d], unit length
    ids: Ids  # [m], ascending: a row is not its own neighbor
    schema: pa.Schema = pa.schema([("outlier", pa.float32())])

    def compute(self, block: Block) -> list[pa.Array]:
        products = block.rows @ self.background.T
        start, stop = np.searchsorted(self.ids, [block.first, block.first + len(block.rows)])
        products[self.ids[start:stop] - block.first, np.arange(start, stop)] = -np.inf
        count = min(NEAREST, products.shape[1] - 1)
        nearest = np.partition(products, -count, axis=1)[:, -count:]
        return [numbers(1 - nearest.mean(axis=1), block.filled, pa.float32())]


@dataclass(frozen=True, eq=False)
class Clusters:
    """The nearest of some centroids."""

    centroids: Floats  # [k, d], unit length
    names: Sequence[str | None]
    schema: pa.Schema = pa.schema(
        [("cluster", pa.int64()), ("cluster_name", pa.string()), ("cluster_similarity", pa.float32())]
    )

    def compute(self, block: Block) -> list[pa.Array]:
        products = block.rows @ self.centroids.T
        own = products.argmax(axis=1)
        named = pa.DictionaryArray.from_arrays(pa.array(own, mask=~block.filled), pa.array(self.names, pa.string()))
        similarities = products[np.arange(len(own)), own]
        return [
            numbers(own, block.filled, pa.int64()),
            named.cast(pa.string()),
            numbers(similarities, block.filled, pa.float32()),
        ]


def name_by_labels(centroids: Floats, labels: Sequence[str], prompts: Floats) -> list[str | None]:
    """Return for each centroid the label that it favors most, compared with the mean of all centroids."""
    leaning = unit(centroids - centroids.mean(axis=0)) @ unit(prompts - prompts.mean(axis=0)).T
    return [labels[best] for best in leaning.argmax(axis=1).tolist()]


def name_by_captions(own: Ids, captions: Sequence[str | None], count: int) -> list[str | None]:
    """Return for each cluster the words that set its captions apart from all others, None if it has none.

    `own` is the cluster of each caption. A word counts once per caption.
    """
    words = [frozenset(WORD.findall((caption or "").lower())) for caption in captions]
    overall = Counter(word for some in words for word in some)
    total = max(1, len(words))
    names: list[str | None] = []
    for cluster in range(count):
        members = [words[place] for place in np.flatnonzero(own == cluster).tolist()]
        here = Counter(word for some in members for word in some)
        share = {word: found / len(members) for word, found in here.items() if found >= max(2, NAMED_BY * len(members))}
        told = {word: part * np.log(part * total / overall[word]) for word, part in share.items()}
        best = sorted(told, key=lambda word: (-told[word], word))[:WORDS_IN_NAME]
        names.append(", ".join(word for word in best if told[word] > 0) or None)
    return names
