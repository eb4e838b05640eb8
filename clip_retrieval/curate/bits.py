"""Hashes of 64 bits that differ in few: all pairs of them, by the pigeonhole principle."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

WIDTH = 64
COMPARED = 1 << 22  # pairs at once
SET_BITS = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


def near_pairs(hashes: NDArray[np.uint64], most: int) -> NDArray[np.int64]:
    """Return the pairs of places [n, 2], smaller first, whose distinct hashes differ in at most `most` bits.

    Two such hashes agree in at least one of `most` + 1 bands of bits, so only those with an equal band are compared.
    """
    edges = np.linspace(0, WIDTH, most + 2).astype(int)
    found = [np.empty((0, 2), np.int64)]
    if not len(hashes):
        return found[0]
    for low, high in pairwise(edges.tolist()):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(band, kind="stable")
        begins = np.flatnonzero(np.diff(band[order], prepend=band[order[:1]] + np.uint64(1)))
        for begin, end in zip(begins, [*begins[1:], len(order)], strict=True):
            if end - begin > 1:
                found += pairs_within(hashes, order[begin:end], most)
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def pairs_within(hashes: NDArray[np.uint64], places: NDArray[np.int64], most: int) -> list[NDArray[np.int64]]:
    """Return the pairs among these places, a block of rows at a time."""
    found = []
    step = max(1, COMPARED // len(places))
    for start in range(0, len(places), step):
        left = places[start : start + step]
        rows, columns = np.nonzero(count_differing(hashes[left][:, None], hashes[places][None, :]) <= most)
        later = columns > rows + start
        found.append(np.stack([left[rows[later]], places[columns[later]]], axis=1))
    return found


def count_differing(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.int64]:
    different = np.bitwise_xor(a, b)
    octets = np.ascontiguousarray(different).view(np.uint8).reshape(*different.shape, 8)
    found: NDArray[np.int64] = SET_BITS[octets].sum(axis=-1, dtype=np.int64)
    return found
