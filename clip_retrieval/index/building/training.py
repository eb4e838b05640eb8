"""An empty index from a sample of the rows: its rotation, its lists and its codebooks, for a plan.

faiss's own training of product quantizers takes minutes and looks only at the rows. Here the directions of the
queries count as well, and codebooks are grids of scalar quantizers (`bit_allocation.py`), which are found quickly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.index.building.bit_allocation import PADDING, Doubles, Floats, choose_mixed, codebooks, lay_out
from clip_retrieval.index.building.named_kinds import train_given
from clip_retrieval.index.planning.costs import CLUSTERED_DIMS, CLUSTERING_STEPS
from clip_retrieval.index.planning.shapes import GRAPH_LINKS, LISTS_FOR_GRAPH, Codes, Plan

CODEBOOK_ROWS = 32_768
# Share of the queries' mean square, for each bit a dimension, kept for directions that no drawn query has.
HEDGE_OF_BIT = 0.04
BLOCK_ROWS = 16_384  # sample rows that are handled at a time
SEED = 1
GRAPH_BUILD_DEPTH, GRAPH_SEARCH_DEPTH = 80, 64

METRIC = faiss.METRIC_INNER_PRODUCT


@dataclass(frozen=True)
class Basis:
    """Orthonormal columns [d, d] that decorrelate some rows, and what a code can gain in each [d]."""

    columns: Floats
    importance: Doubles


def train_index(plan: Plan, sample: Floats, queries: Floats) -> Any:
    """Return the empty index of a plan, ready for rows.

    `sample` [n, d] are rows, and are overwritten; `queries` [q, d] are vectors like future queries.
    """
    if plan.kind == "given":
        return train_given(plan, sample)
    if plan.kind == "exact":
        return make_store(plan, sample, queries)
    if plan.kind == "graph":
        return make_graph(plan)
    if plan.kind == "listed":
        return make_whole_lists(plan, sample)
    if plan.store is None:
        return train_lists(plan, sample, queries)
    store = make_store(plan, sample, queries)
    return own(faiss.IndexRefine(train_lists(plan, sample, queries), store), "own_fields", "own_refine_index")


def make_store(plan: Plan, sample: Floats, queries: Floats) -> Any:
    """Return the store of whole rows."""
    if plan.store == "codes":
        return train_codes(plan.stored_codes, sample[:CODEBOOK_ROWS], queries)
    if plan.store == "PCA":
        return train_directions(plan, sample[:CODEBOOK_ROWS], queries)
    if plan.store == "fp32":
        return faiss.IndexFlatIP(plan.dim)
    kinds = {"fp16": "QT_fp16", "SQ8": "QT_8bit", "SQ6": "QT_6bit", "SQ4": "QT_4bit"}
    store = faiss.IndexScalarQuantizer(plan.dim, getattr(faiss.ScalarQuantizer, kinds[str(plan.store)]), METRIC)
    store.train(sample)
    return store


def make_graph(plan: Plan) -> Any:
    """Return the graph that links each whole row to its neighbors."""
    if plan.store == "fp32":
        return faiss.IndexHNSWFlat(plan.dim, GRAPH_LINKS, METRIC)
    graph = faiss.IndexHNSWSQ(plan.dim, faiss.ScalarQuantizer.QT_fp16, GRAPH_LINKS, METRIC)
    graph.is_trained = graph.storage.is_trained = True
    return graph


def make_whole_lists(plan: Plan, sample: Floats) -> Any:
    """Return lists that hold whole rows."""
    centroids = cluster(sample, min(plan.lists, len(sample)))
    quantizer = make_quantizer(centroids)
    if plan.store == "fp32":
        lists = faiss.IndexIVFFlat(quantizer, plan.dim, len(centroids), METRIC)
    else:
        half = faiss.ScalarQuantizer.QT_fp16
        lists = faiss.IndexIVFScalarQuantizer(quantizer, plan.dim, len(centroids), half, METRIC)
    lists.is_trained = True
    return own(lists, "own_fields")


def train_lists(plan: Plan, sample: Floats, queries: Floats) -> Any:
    """Return a rotation over lists whose codes hold the difference of a row and its list's centroid."""
    centroids = cluster(sample, min(plan.lists, len(sample)))
    residuals = np.ascontiguousarray(subtract_centroids(sample, centroids)[:CODEBOOK_ROWS])
    basis = find_basis(mean_products(residuals), queries, plan.codes)
    layout = lay_out(basis.importance, plan.codes.groups, plan.codes.bits)
    transform = make_transform(basis, layout.dims.ravel())
    quantizer = make_quantizer(transform.apply(centroids))
    kind = faiss.IndexIVFPQ if plan.bits == 8 else faiss.IndexIVFPQFastScan
    lists = kind(quantizer, layout.width, len(centroids), layout.groups, plan.bits, METRIC)
    faiss.copy_array_to_vector(codebooks(layout, transform.apply(residuals)).ravel(), lists.pq.centroids)
    lists.by_residual = lists.is_trained = True
    return own(faiss.IndexPreTransform(transform, own(lists, "own_fields")), "own_fields")


def train_codes(codes: Codes, rows: Floats, queries: Floats) -> Any:
    """Return a rotation over codes of whole rows [n, d], for reranking.

    Codes without a list have to hold more than codes of lists: all of a row, except for what all rows have in common.
    """
    basis = find_basis(mean_products(rows) - product_of_means(rows), queries, codes)
    layout = lay_out(basis.importance, codes.groups, codes.bits)
    transform = make_transform(basis, layout.dims.ravel())
    store = faiss.IndexPQ(layout.width, layout.groups, codes.bits, METRIC)
    faiss.copy_array_to_vector(codebooks(layout, transform.apply(rows)).ravel(), store.pq.centroids)
    store.is_trained = True
    return own(faiss.IndexPreTransform(transform, store), "own_fields")


def train_directions(plan: Plan, rows: Floats, queries: Floats) -> Any:
    """Return a rotation to the directions that matter most for inner products, over a byte for each of them.

    A query is rotated and compared directly, while codes would need a table of products first.
    """
    basis = find_basis(mean_products(rows) - product_of_means(rows), queries, plan.stored_codes)
    transform = make_transform(basis, np.argsort(-basis.importance, kind="stable")[: plan.store_bytes])
    store = faiss.IndexScalarQuantizer(plan.store_bytes, faiss.ScalarQuantizer.QT_8bit, METRIC)
    store.train(transform.apply(rows))
    return own(faiss.IndexPreTransform(transform, store), "own_fields")


def cluster(sample: Floats, count: int) -> Floats:
    """Return the centroids [count, d] of lists, found by the first principal directions of the sample [n, d]."""
    columns = principal_columns(mean_products(sample) - product_of_means(sample))[:, :CLUSTERED_DIMS]
    short = sample @ np.ascontiguousarray(columns)
    clustering = faiss.Clustering(short.shape[1], count)
    clustering.niter, clustering.seed = CLUSTERING_STEPS, SEED
    clustering.min_points_per_centroid, clustering.max_points_per_centroid = 1, len(sample)
    found = faiss.IndexFlatL2(short.shape[1])
    clustering.train(short, found)
    return average(sample, found.search(short, 1)[1][:, 0], count)


def subtract_centroids(sample: Floats, centroids: Floats) -> Floats:
    """Replace each row by its difference from its list's centroid, the one with the largest inner product."""
    for start in range(0, len(sample), BLOCK_ROWS):
        block = sample[start : start + BLOCK_ROWS]
        _, owners = faiss.knn(block, centroids, 1, metric=METRIC)
        block -= centroids[owners[:, 0]]
    return sample


def average(rows: Floats, owners: NDArray[np.int64], count: int) -> Floats:
    """Return the means [count, d] of the rows of each owner; zero if an owner has none."""
    sums = np.zeros((count, rows.shape[1]), dtype=np.float32)
    for start in range(0, len(rows), BLOCK_ROWS):
        block, of_block = rows[start : start + BLOCK_ROWS], owners[start : start + BLOCK_ROWS]
        order = np.argsort(of_block, kind="stable")
        here, firsts = np.unique(of_block[order], return_index=True)
        sums[here] += np.add.reduceat(block[order], firsts, axis=0)
    return sums / np.maximum(np.bincount(owners, minlength=count), 1)[:, None].astype(np.float32)


def find_basis(spreads: Doubles, queries: Floats, codes: Codes) -> Basis:
    """Return a basis for codes of rows whose mean products [d, d] are known."""
    bits = codes.groups * codes.bits
    asks = hedge(mean_products(queries), HEDGE_OF_BIT * bits / codes.dim)
    columns = principal_columns(spreads)
    spread, asked = squares(spreads, columns), squares(asks, columns)
    mixed = choose_mixed(spread, asked, bits, codes.bits)
    if mixed:
        first = np.argsort(-spread * asked)[:mixed]
        rotation, _ = np.linalg.qr(np.random.default_rng(SEED).standard_normal((mixed, mixed)))
        columns[:, first] = columns[:, first] @ rotation
        spread, asked = squares(spreads, columns), squares(asks, columns)
    return Basis(columns, spread * asked)


def mean_products(rows: Floats) -> Doubles:
    """Return the mean product [d, d] of each two dimensions of rows [n, d]."""
    means: Doubles = (rows.T @ rows).astype(np.float64) / len(rows)
    return means


def product_of_means(rows: Floats) -> Doubles:
    mean = rows.mean(axis=0, dtype=np.float64)
    product: Doubles = np.outer(mean, mean)
    return product


def hedge(asks: Doubles, share: float) -> Doubles:
    """Return mean products [d, d] of queries with a share of their mean square spread over all directions.

    The more bits there are, the more count directions that only other queries than the drawn ones could need.
    """
    hedged: Doubles = asks + share * np.trace(asks) / len(asks) * np.eye(len(asks))
    return hedged


def squares(products: Doubles, columns: Floats) -> Doubles:
    """Return the mean square [d] along each column [d, d] of rows whose mean products are known."""
    means: Doubles = np.einsum("ij,ij->j", products @ columns, columns.astype(np.float64))
    return np.maximum(means, 0)


def principal_columns(products: Doubles) -> Floats:
    """Return orthonormal columns [d, d], the direction with the largest mean square first."""
    _, columns = np.linalg.eigh(products)
    return np.ascontiguousarray(columns[:, ::-1], dtype=np.float32)


def make_transform(basis: Basis, dims: NDArray[np.int64]) -> Any:
    """Return faiss's linear transform of rows to some dimensions of the basis, in their order; padding is zero."""
    matrix = np.where(dims[:, None] == PADDING, 0, basis.columns.T[dims]).astype(np.float32)
    transform = faiss.LinearTransform(matrix.shape[1], matrix.shape[0], False)  # noqa: FBT003 -- have_bias
    faiss.copy_array_to_vector(matrix.ravel(), transform.A)
    transform.is_trained = True
    return transform


def make_quantizer(centroids: Floats) -> Any:
    """Return the quantizer that finds the lists of a row: compares all centroids, or uses a graph if there are many."""
    if len(centroids) < LISTS_FOR_GRAPH:
        quantizer = faiss.IndexFlatIP(centroids.shape[1])
    else:
        quantizer = faiss.IndexHNSWFlat(centroids.shape[1], GRAPH_LINKS, METRIC)
        quantizer.hnsw.efConstruction, quantizer.hnsw.efSearch = GRAPH_BUILD_DEPTH, GRAPH_SEARCH_DEPTH
    quantizer.add(centroids)
    return quantizer


def own(index: Any, *flags: str) -> Any:
    """Give an index the ownership of its parts: faiss frees them with it, Python no longer does."""
    for flag in flags:
        setattr(index, flag, True)
    for part in index.referenced_objects:
        part.this.disown()
    del index.referenced_objects
    return index
