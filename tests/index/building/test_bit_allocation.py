"""Codes: bits are shared out whole, levels are the best ones, and both lower what queries see of the error."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from clip_retrieval.index.building.bit_allocation import (
    GAUSSIAN_DISTORTIONS,
    PADDING,
    CodeLayout,
    Doubles,
    Floats,
    choose_mixed,
    codebooks,
    ideal_bits,
    lay_out,
    scalar_levels,
)

DIM = 32
ROWS, QUERIES = 8_192, 256

importances = st.lists(st.one_of(st.floats(1e-9, 1e3), st.just(0.0)), min_size=1, max_size=90).map(np.array)


@settings(deadline=None)
@given(importance=importances, groups=st.integers(1, 40), group_bits=st.sampled_from([4, 8]))
@example(importance=np.zeros(5), groups=3, group_bits=8)
@example(importance=np.ones(2), groups=9, group_bits=4)
def test_every_bit_goes_to_one_dimension_and_none_is_coded_twice(
    importance: Doubles, groups: int, group_bits: int
) -> None:
    layout = lay_out(importance, groups, group_bits)

    kept = layout.dims[layout.dims != PADDING]
    assert layout.dims.shape == layout.bits.shape == (groups, layout.width // groups)
    assert (layout.bits.sum(axis=1) == group_bits).all()
    assert layout.bits.min() >= 0
    assert len(set(kept.tolist())) == len(kept)
    shared = (layout.dims != PADDING).any(axis=1)
    assert not layout.bits[shared][layout.dims[shared] == PADDING].any()
    left_out = np.delete(importance, kept)
    assert not len(left_out) or left_out.max() <= importance[kept].min()


@given(importance=importances, total=st.integers(1, 400), most=st.sampled_from([4, 8]))
def test_ideal_bits_use_what_there_is_and_follow_importance(importance: Doubles, total: int, most: int) -> None:
    bits = ideal_bits(importance, total, most)

    assert bits.sum() == pytest.approx(min(total, most * len(importance)))
    assert bits.min() >= 0
    assert bits.max() <= most
    assert (np.diff(bits[np.argsort(importance)]) >= 0).all()


def test_ideal_bits_leave_the_same_weighted_error_in_every_dimension_that_has_some() -> None:
    importance = np.array([64.0, 16.0, 4.0, 1.0, 1e-6])

    bits = ideal_bits(importance, 10, 8)

    np.testing.assert_allclose(bits, [4, 3, 2, 1, 0], atol=1e-6)


def normal(count: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def distortion(values: Floats, levels: Floats) -> float:
    nearest = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, values)]
    return float(np.mean((values - nearest) ** 2, dtype=np.float64))


@pytest.mark.parametrize("bits", range(9))
def test_levels_of_normal_values_are_as_good_as_the_best_known(bits: int) -> None:
    values = normal(200_000)

    levels = scalar_levels(values, 2**bits)

    assert len(levels) == 2**bits
    assert (np.diff(levels) >= 0).all()
    assert distortion(values, levels) == pytest.approx(GAUSSIAN_DISTORTIONS[bits], rel=0.04)


@pytest.mark.parametrize(("bits", "power"), [(1, 1), (2, 1), (4, 1), (8, 1), (1, 3), (2, 3), (4, 3)])
def test_levels_are_better_than_even_ones(bits: int, power: int) -> None:
    values = normal(50_000) ** power
    steps = np.linspace(values.min(), values.max(), 2 ** (bits + 1) + 1)[1::2].astype(np.float32)

    assert distortion(values, scalar_levels(values, 2**bits)) < 0.7 * distortion(values, steps)


@pytest.mark.parametrize("values", [np.full(100, 0.25), np.array([0.25]), np.repeat([0.25, -1.0], 7)])
def test_values_that_repeat_are_levels_of_their_own(values: NDArray[np.float64]) -> None:
    levels = scalar_levels(values.astype(np.float32), 16)

    assert np.isfinite(levels).all()
    assert distortion(values.astype(np.float32), levels) < 1e-12


def make_rows(spread: Doubles, count: int, seed: int) -> Floats:
    """Normal rows [count, d] of which each dimension has its own spread."""
    rows = np.random.default_rng(seed).standard_normal((count, len(spread)), dtype=np.float32)
    scaled: Floats = rows * np.sqrt(spread).astype(np.float32)
    return scaled


def in_order(rows: Floats, layout: CodeLayout) -> Floats:
    """Rows [n, width] in the layout's order, as after the transform."""
    dims = layout.dims.ravel()
    ordered: Floats = np.where(dims == PADDING, 0, rows[:, dims]).astype(np.float32)
    return ordered


def make_quantizer(layout: CodeLayout, values: Floats) -> faiss.ProductQuantizer:
    quantizer = faiss.ProductQuantizer(layout.width, layout.groups, layout.group_bits)
    faiss.copy_array_to_vector(codebooks(layout, values).ravel(), quantizer.centroids)
    return quantizer


def code(rows: Floats, layout: CodeLayout) -> Floats:
    """What is left of rows [n, d] after coding."""
    values = in_order(rows, layout)
    quantizer = make_quantizer(layout, values)
    decoded = quantizer.decode(quantizer.compute_codes(values))
    result = np.zeros_like(rows)
    dims = layout.dims.ravel()
    result[:, dims[dims != PADDING]] = decoded[:, dims != PADDING]
    return result


def seen_error(rows: Floats, queries: Floats, coded: Floats) -> float:
    """Mean square error of inner products."""
    return float(np.mean((queries @ (coded - rows).T) ** 2, dtype=np.float64))


@pytest.mark.parametrize(("groups", "group_bits"), [(8, 8), (10, 4), (3, 8), (40, 4)])
def test_codebooks_are_grids_of_the_levels_of_each_dimension(groups: int, group_bits: int) -> None:
    spread = np.arange(1, DIM + 1) ** -1.5
    layout = lay_out(spread, groups, group_bits)
    values = in_order(make_rows(spread, 4_096, 1), layout)
    quantizer = make_quantizer(layout, values)

    decoded = quantizer.decode(quantizer.compute_codes(values))

    for column, (dim, bits) in enumerate(zip(layout.dims.ravel(), layout.bits.ravel(), strict=True)):
        levels = scalar_levels(values[:, column], 2 ** int(bits)) if dim != PADDING else np.zeros(1, np.float32)
        assert np.isin(decoded[:, column], levels).all()
        nearest = np.abs(values[:, column, None] - levels).min(axis=1)
        np.testing.assert_allclose(np.abs(values[:, column] - decoded[:, column]), nearest, atol=1e-3)


@pytest.mark.parametrize(("groups", "group_bits"), [(8, 8), (16, 4)])
def test_bits_by_importance_lower_the_error_that_queries_see(groups: int, group_bits: int) -> None:
    spread = np.arange(1, DIM + 1) ** -2.0
    asked = np.roll(np.arange(1, DIM + 1) ** -2.0, 5)  # queries are long in other directions than rows
    rows, queries = make_rows(spread, ROWS, 2), make_rows(asked, QUERIES, 3)

    error = {
        name: seen_error(rows, queries, code(rows, lay_out(importance, groups, group_bits)))
        for name, importance in (("equal", np.ones(DIM)), ("rows", spread), ("both", spread * asked))
    }

    assert error["both"] < 0.7 * error["rows"]
    assert error["both"] < 0.3 * error["equal"]


def test_mixing_the_first_dimensions_helps_where_their_bits_are_capped() -> None:
    spread = asked = np.concatenate([np.full(4, 10.0), np.full(DIM - 4, 0.3)])
    rows, queries = make_rows(spread, ROWS, 4), make_rows(asked, QUERIES, 5)
    groups = 16

    mixed = choose_mixed(spread, asked, 4 * groups, 4)
    rotation, _ = np.linalg.qr(np.random.default_rng(6).standard_normal((mixed, mixed)))
    turned, asking = rows.copy(), queries.copy()
    for side in (turned, asking):
        side[:, :mixed] = side[:, :mixed] @ rotation
    importance = np.square(turned).mean(axis=0, dtype=np.float64) * np.square(asking).mean(axis=0, dtype=np.float64)

    assert mixed > 4
    plain = seen_error(rows, queries, code(rows, lay_out(spread * asked, groups, 4)))
    assert seen_error(turned, asking, code(turned, lay_out(importance, groups, 4))) < 0.8 * plain


def test_nothing_is_mixed_where_bits_are_enough() -> None:
    assert choose_mixed(np.ones(DIM), np.ones(DIM), 4 * DIM, 8) == 0
    assert choose_mixed(np.arange(1, DIM + 1) ** -1.0, np.ones(DIM), 2 * DIM, 8) == 0
