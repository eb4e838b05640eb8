"""Builds the kind named by --index_key with faiss's own factory and training; warns once about too few rows."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss

from clip_retrieval.errors import ConfigError, first_line
from clip_retrieval.index.building.bit_allocation import Floats
from clip_retrieval.index.planning.plan import ROWS_PER_CENTROID, count_centroids
from clip_retrieval.index.planning.shapes import Plan

logger = logging.getLogger(__name__)

EMPTY_PART = re.compile(r"[A-Za-z]0+(?![0-9])")
INNER = ("index", "base_index", "refine_index", "quantizer", "storage")
CLUSTERED = ("pq", "rq")
OPQ_SHARE = 0.08  # of the steps of OPQ, if a kind is only tried
POLYSEMOUS_SECONDS = 3.5  # of a core, for each part of 8 bits of a product quantizer
METRIC = faiss.METRIC_INNER_PRODUCT


def train_given(plan: Plan, sample: Floats) -> Any:
    """Return the trained index; raises ConfigError if faiss cannot make or train it."""
    index = make_given(plan)
    say_training(plan, index, len(sample))
    with telling_why(plan), without_warnings(index):
        index.train(sample)
    return index


def train_quickly(plan: Plan, sample: Floats) -> Any:
    """Return the trained index of a plan that is only tried, without log lines.

    Rotations of OPQ take few steps, and codes are not made polysemous, which changes no distance.
    """
    index = make_given(plan)
    for holder in list_polysemous(index):
        holder.do_polysemous_training = False
    with telling_why(plan), without_warnings(index, OPQ_SHARE):
        index.train(sample)
    return index


def polysemous_seconds(plan: Plan) -> float:
    """Return the seconds of a core that faiss takes to make codes polysemous, as keys without `np` ask for."""
    index = make_given(plan)  # which owns what is listed
    seconds: float = sum(POLYSEMOUS_SECONDS * part.pq.M * 2.0 ** (part.pq.nbits - 8) for part in list_polysemous(index))
    return seconds


def list_polysemous(index: Any) -> Iterator[Any]:
    """Yield the parts of an index that make their codes polysemous."""
    index = faiss.downcast_index(index)
    if getattr(index, "do_polysemous_training", False):
        yield index
    for name in INNER:
        if getattr(index, name, None) is not None:
            yield from list_polysemous(getattr(index, name))


def make_given(plan: Plan) -> Any:
    """Return the untrained index of a key; raises ConfigError if faiss does not know it."""
    if EMPTY_PART.search(plan.given_key):  # faiss accepts such a key, then crashes
        raise ConfigError(
            f"--index_key {plan.given_key}: a part of it has no lists, links or codes; write IVF1024, HNSW32"
        )
    with telling_why(plan):
        index = faiss.index_factory(plan.dim, plan.given_key, METRIC)
    if isinstance(faiss.downcast_index(index), faiss.IndexIDMap):
        raise ConfigError(f"--index_key {plan.given_key}: ids are already rows here; leave IDMap out")
    return index


@contextmanager
def telling_why(plan: Plan) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        why = re.split(r"\.cpp:\d+: ", first_line(error))[-1].rpartition("failed: ")[2]
        raise ConfigError(f"faiss cannot make an index {plan.given_key} of {plan.dim} dimensions: {why}") from error


def say_training(plan: Plan, index: Any, rows: int) -> None:
    """Log the training, which may take long, and warn if faiss advises more rows for it."""
    if index.is_trained:
        return
    takes = "; OPQ takes minutes" if "OPQ" in plan.given_key else ""
    if seconds := polysemous_seconds(plan):
        takes += f"; codes that `ht` can filter by take {seconds:.0f} s of a core more, without it write np after PQ"
    logger.info("training %s on %s rows%s", plan.given_key, f"{rows:,}", takes)
    count = count_centroids(plan.given_key)
    if rows < ROWS_PER_CENTROID * count:
        more = "; raise --current_memory_available for more" if rows == plan.sample_rows < plan.rows else ""
        logger.warning(
            "%s looks for %s centroids at once, for which faiss advises %s rows to train on, and has %s%s",
            *(plan.given_key, f"{count:,}", f"{ROWS_PER_CENTROID * count:,}", f"{rows:,}", more),
        )


@contextmanager
def without_warnings(index: Any, share: float = 1) -> Iterator[None]:
    """Silence faiss's warning of too few rows for each k-means; OPQ runs thousands, or a share of them."""
    lent = list(quieten(index))
    for rotation in lent:
        rotation.niter = max(1, round(share * rotation.niter))
    try:
        yield
    finally:
        for rotation in lent:
            rotation.pq = None


def quieten(index: Any) -> Iterator[Any]:
    """Lower the row minimum of every k-means; yields OPQ rotations, which hold a temporary quantizer for that."""
    index = faiss.downcast_index(index)
    for name in INNER:
        if getattr(index, name, None) is not None:
            yield from quieten(getattr(index, name))
    for holder in (index, *(getattr(index, name, None) for name in CLUSTERED)):
        if hasattr(holder, "cp"):
            holder.cp.min_points_per_centroid = 1
    for i in range(index.chain.size() if isinstance(index, faiss.IndexPreTransform) else 0):
        rotation = faiss.downcast_VectorTransform(index.chain.at(i))
        if isinstance(rotation, faiss.OPQMatrix):
            rotation.pq = faiss.ProductQuantizer(rotation.d_out, rotation.M, 8)  # the one that OPQ would make itself
            rotation.pq.cp.min_points_per_centroid = 1
            yield rotation
