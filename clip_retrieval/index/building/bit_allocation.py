"""Allocates a code's bits to dimensions to minimize the error of inner products with queries.

A vector x is kept as x', and a query q sees the error q.(x' - x). Its mean square is the sum over dimensions of
E[q_i^2] E[(x'_i - x_i)^2] where the basis decorrelates the errors, so a bit is worth most where queries are long and
rows spread: plain product quantizers, which treat all dimensions alike, waste half of theirs. Each dimension gets a
scalar quantizer; several share a byte, so that faiss reads the whole as a product quantizer whose codebooks are grids.

Sources: Max, "Quantizing for minimum distortion" (1960), for the scalar quantizers; Cover and Thomas, "Elements of
information theory", 10.3.3, for the allocation (reverse water-filling), here of weighted errors.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

# Mean square error of the best scalar quantizer of 0, 1, ... 8 bits for a normal distribution of variance 1.
GAUSSIAN_DISTORTIONS = (1.0, 0.36338, 0.117482, 0.034548, 0.009501, 0.0025047, 0.00064432, 0.00016352, 0.0000412)
LLOYD_STEPS = 12
COMPANDING_BINS = 128
MIXED_COUNTS = np.unique(np.geomspace(2, 4096, 45).astype(int))
LEAST_BITS_WORTH_A_SLOT = 0.25
LEAST_IMPORTANCE = np.finfo(np.float64).tiny  # avoids log(0) if all rows are equal
PADDING = -1


@dataclass(frozen=True)
class CodeLayout:
    """Groups of dimensions that share a code of `group_bits` bits each."""

    dims: Ints  # [groups, slots], PADDING for a free slot
    bits: Ints  # [groups, slots]; each row sums up to group_bits
    group_bits: int

    @property
    def groups(self) -> int:
        return int(self.dims.shape[0])

    @property
    def width(self) -> int:
        """Dimensions after the transform, including padding."""
        return int(self.dims.size)


def lay_out(importance: Doubles, groups: int, group_bits: int) -> CodeLayout:
    """Share groups x group_bits bits among dimensions of importance [d]: E[q_i^2] times the variance of x_i."""
    wanted = ideal_bits(importance, groups * group_bits, group_bits)
    slots = count_slots(wanted, groups)
    dims = balance(wanted, importance, groups, slots)
    bits = np.stack([share_bits(importance, group, group_bits) for group in dims])
    return CodeLayout(dims, bits, group_bits)


def choose_mixed(spread: Doubles, asked: Doubles, total: int, most: int) -> int:
    """Return how many of the most important dimensions to mix by a random rotation; 0: none.

    A dimension takes at most `most` bits, though the first ones deserve more. A rotation equalizes their variances, and
    the lengths of queries along them, which lowers the sum of their products; it costs the gain of an allocation.
    """
    order = np.argsort(-spread * asked)
    spread, asked = spread[order], asked[order]

    def remaining(count: int) -> float:
        importance = spread * asked
        if count:
            importance[:count] = spread[:count].mean() * asked[:count].mean()
        return float((importance * 4.0 ** -ideal_bits(importance, total, most)).sum())

    counts: list[int] = [0, *MIXED_COUNTS[len(spread) >= MIXED_COUNTS].tolist(), len(spread)]
    return min(counts, key=remaining)


def ideal_bits(importance: Doubles, total: int, most: int) -> Doubles:
    """Return fractions of bits [d] by reverse water-filling: max(0, log2(importance / level) / 2), at most `most`."""
    logs = np.log2(np.maximum(importance, max(importance.max() * 1e-12, LEAST_IMPORTANCE))) / 2
    low, high = logs.min() - most, logs.max()
    for _ in range(60):
        level = (low + high) / 2
        if np.clip(logs - level, 0, most).sum() > total:
            low = level
        else:
            high = level
    bits: Doubles = np.clip(logs - high, 0, most)
    return bits


def count_slots(wanted: Doubles, groups: int) -> int:
    """Return the dimensions of a group: a power of two, for which faiss has fast code."""
    used = int((wanted > LEAST_BITS_WORTH_A_SLOT).sum())
    return next(slots for slots in (1, 2, 4, 8, 16, 32, 64) if slots * groups >= used or slots == 64)


def balance(wanted: Doubles, importance: Doubles, groups: int, slots: int) -> Ints:
    """Return dims [groups, slots] with about equal bits per group: greedily, the largest dimension to the emptiest."""
    order = np.lexsort((-importance, -wanted))[: groups * slots]
    dims = np.full((groups, slots), PADDING, dtype=np.int64)
    free = [(0.0, 0, group) for group in range(groups)]
    for dim in order:
        load, filled, group = heapq.heappop(free)
        dims[group, filled] = dim
        if filled + 1 < slots:
            heapq.heappush(free, (load + float(wanted[dim]), filled + 1, group))
    return dims


def share_bits(importance: Doubles, group: Ints, group_bits: int) -> Ints:
    """Return the bits [slots] of one group: each goes where it lowers the weighted error most."""
    bits = np.zeros(len(group), dtype=np.int64)
    weights = np.where(group == PADDING, 0.0, importance[group])
    distortions = np.array(GAUSSIAN_DISTORTIONS)
    for _ in range(group_bits):
        gains = weights * (distortions[bits] - distortions[np.minimum(bits + 1, len(distortions) - 1)])
        bits[int(np.argmax(gains))] += 1
    return bits


def codebooks(layout: CodeLayout, values: Floats) -> Floats:
    """Return the grids [groups, 2^group_bits, slots] for rows like values [n, width], in the layout's order."""
    books = np.zeros((layout.groups, 2**layout.group_bits, layout.dims.shape[1]), dtype=np.float32)
    for group, (dims, bits) in enumerate(zip(layout.dims, layout.bits, strict=True)):
        period = 1
        for slot in range(len(dims)):
            column = group * len(dims) + slot
            levels = scalar_levels(values[:, column], 2 ** int(bits[slot])) if dims[slot] != PADDING else np.zeros(1)
            repeated = np.repeat(levels, period)
            books[group, :, slot] = np.tile(repeated, books.shape[1] // len(repeated))
            period *= len(levels)
    return books


def scalar_levels(values: Floats, count: int) -> Floats:
    """Return the levels [count] of the scalar quantizer with the least square error on the values (Lloyd-Max)."""
    ordered = np.sort(values.astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    # companding: levels as dense as the cube root of the values' density are nearly the best ones (Panter and Dite)
    counts, edges = np.histogram(ordered, bins=COMPANDING_BINS)
    share = np.concatenate([[0.0], np.cumsum(np.cbrt(counts))])
    levels = np.interp((np.arange(count) + 0.5) / count * share[-1], share, edges)
    for _ in range(LLOYD_STEPS):
        edges = np.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2)
        starts, stops = np.concatenate([[0], edges]), np.concatenate([edges, [len(ordered)]])
        counts = stops - starts
        levels = np.where(counts > 0, (sums[stops] - sums[starts]) / np.maximum(counts, 1), levels)
        levels = np.sort(levels)
    found: Floats = levels.astype(np.float32)
    return found
