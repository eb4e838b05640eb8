"""Projected rows: their bounds hold for every pair, and every way of comparing finds the pairs of brute force."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.curate import projection, tiles
from clip_retrieval.curate.blocks import find_blocks, margin_of
from clip_retrieval.curate.embedded import Pool, open_embedded, unit
from clip_retrieval.curate.placed import Rows
from clip_retrieval.curate.projection import Projection, choose_width, find_axes
from clip_retrieval.curate.tiles import Compare, Side, Tile, Tiles

Floats = NDArray[np.float32]
KINDS = ("even", "cone", "near", "flat", "long", "short", "few")


def make_rows(kind: str, dim: int, seed: int = 0) -> Floats:
    """Return 240 rows that spread evenly, in a cone, as near-duplicates, in 5 directions, or of odd lengths."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((240, dim))
    if kind == "cone":
        rows += 3 * random.standard_normal(dim)
    elif kind == "near":
        rows[120:] = rows[:120] + np.linspace(0, 1, 120)[:, None] * rows[120:]
    elif kind == "flat":
        rows = rows[:, : min(5, dim)] @ random.standard_normal((min(5, dim), dim))
    elif kind == "few":
        rows = np.repeat(rows[:4], 60, axis=0)
    return (rows * {"long": 1e4, "short": 1e-4}.get(kind, 1)).astype(np.float32)


def cosines_of(rows: Floats) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    found: NDArray[np.float64] = wide @ wide.T
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dim", "width"), [(2, 1), (2, 2), (16, 4), (96, 32), (96, 96), (640, 128)])
def test_projected_rows_are_never_less_alike_than_the_rows(kind: str, dim: int, width: int) -> None:
    rows = make_rows(kind, dim)
    made = Projection(find_axes(unit(rows)).axes[: width - 1], 1.0)
    cosines, short = cosines_of(rows), made.project(rows).astype(np.float64)
    assert short.shape == (len(rows), width)
    assert (short @ short.T >= cosines - made.loss).all()
    squares = (short**2).sum(axis=1)
    distances = squares[:, None] + squares - 2 * short @ short.T
    assert (distances <= 2 - 2 * cosines + 2 * made.loss).all()
    assert made.loss < 0.005


def test_rows_are_projected_to_fewer_numbers_where_that_rules_pairs_out() -> None:
    rows = unit(make_rows("even", 128))
    whole = find_axes(rows)
    assert choose_width(rows, whole, 0.95, 1) <= 64
    assert choose_width(rows, whole, 0.5, 1) > 64


@pytest.mark.parametrize("is_exact", [True, False])
def test_every_pair_is_within_one_block_or_one_row_visits_the_other_ones(is_exact: bool) -> None:
    rows = make_rows("even", 6)
    made = find_axes(unit(rows))
    short = made.project(rows)
    blocks = find_blocks(short, 9, margin_of(made, 0.9, is_exact=is_exact))
    own, visitors, visited = blocks.place(short.astype(np.float32))
    visits = set(zip(visitors.tolist(), visited.tolist(), strict=True))
    pairs = np.argwhere(np.triu(cosines_of(rows) >= 0.9, 1)).tolist()
    split = [(a, b) for a, b in pairs if own[a] != own[b]]
    lost = [(a, b) for a, b in split if (a, own[b]) not in visits and (b, own[a]) not in visits]
    assert split
    assert len(lost) <= (0 if is_exact else 0.05 * len(pairs))


@pytest.fixture
def rows_of(write_run: Callable[..., Path], tmp_path: Path) -> Callable[[Floats, int], Rows]:
    """Give a function from rows and a width to what the command compares."""

    def make(rows: Floats, width: int) -> Rows:
        folder = write_run(tmp_path / "run", [rows[:100], rows[100:]])
        made = Projection(find_axes(unit(rows)).axes[: width - 1], 1.0)
        pool = Pool([open_embedded(str(folder), "image").vectors])
        return Rows(pool, np.arange(len(rows)), made.project(rows), made.loss)

    return make


@pytest.mark.parametrize("kind", ["even", "near", "few"])
@pytest.mark.parametrize("settings", [{}, {"DENSE": -1.0}, {"DENSE": 2.0, "WAITING": 90, "AT_ONCE": 700}])
@pytest.mark.parametrize("width", [16, 48])
@pytest.mark.parametrize("boundary", [None, 90])
def test_tiles_tell_the_pairs_of_brute_force(
    rows_of: Callable[[Floats, int], Rows],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    settings: dict[str, Any],
    width: int,
    boundary: int | None,
) -> None:
    for name, value in settings.items():
        monkeypatch.setattr(tiles, name, value)
    held = make_rows(kind, 48)
    rows = rows_of(held, width)
    threshold = 0.9 if kind != "even" else 0.3
    done = Tiles(rows, Compare(threshold, rows.ids, boundary, 1 << 30))
    some, others = Side(rows, np.arange(150)), Side(rows, np.arange(150, 240))
    sets = [Tile(some, some, is_within=True)], [Tile(others, some)], [Tile(others, others, is_within=True)]
    found = [ends for tiles in sets for ends in done.compare(tiles)] + [done.decide()]
    true = np.argwhere(np.triu(np.round(cosines_of(held), 9) >= threshold, 1))
    if boundary is not None:
        true = true[(true[:, 0] < boundary) != (true[:, 1] < boundary)]
    joined = np.concatenate(found)
    assert len(true) > 20
    np.testing.assert_array_equal(joined[np.lexsort(joined.T[::-1])], true)


def test_axes_of_too_few_rows_to_have_any_lose_nothing() -> None:
    for count in (0, 1):
        made = find_axes(np.ones((count, 3), np.float32))
        short = made.project(np.eye(3, dtype=np.float32)).astype(np.float64)
        np.testing.assert_allclose(short @ short.T, np.eye(3), atol=0.02)


def test_widths_are_read_fast() -> None:
    assert all(width % 8 == 0 for width in projection.WIDTHS)
