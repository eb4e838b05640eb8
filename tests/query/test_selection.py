"""Near-duplicates in groups that are not chains, and hits that differ."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.errors import ConfigError
from clip_retrieval.query.selection import BLOCK, choose_diverse, find_leaders


def on_circle(*degrees: float) -> NDArray[np.float32]:
    angles = np.radians(degrees)
    return np.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=1), np.float32)


def test_a_row_joins_the_kept_one_that_it_is_near_to() -> None:
    assert find_leaders(on_circle(0, 10, 90, 95), 0.94).tolist() == [0, 0, 2, 2]


def test_groups_are_no_chains() -> None:
    chain = on_circle(0, 15, 30, 45, 60)  # each within the threshold of its neighbor, cos 15 = 0.966
    assert find_leaders(chain, 0.96).tolist() == [0, 0, 2, 2, 4]


def test_zero_rows_are_nobodys_duplicates() -> None:
    assert find_leaders(np.zeros((3, 2), np.float32), 0.5).tolist() == [0, 1, 2]


def test_groups_are_the_same_whatever_the_block(unit_rows: Callable[..., NDArray[np.float32]]) -> None:
    rows = unit_rows(2 * BLOCK + 7, 4)
    leaders, kept = find_leaders(rows, 0.9), list[int]()
    for i, row in enumerate(rows):  # plainly: one row after the other
        near = [j for j in kept if rows[j] @ row >= 0.9]
        assert leaders[i] == (near[0] if near else i) or abs(max(rows[kept] @ row) - 0.9) < 1e-6
        if leaders[i] == i:
            kept.append(i)
    assert 1 < len(kept) < len(rows)
    members = rows @ rows.T
    assert (members[np.arange(len(rows)), leaders] >= 0.9 - 1e-6).all()


def test_no_diversity_gives_the_order_of_scores() -> None:
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    assert choose_diverse(on_circle(0, 1, 2), scores, 2, 0.0).tolist() == [0, 1]


def test_diversity_passes_over_what_is_like_the_best() -> None:
    scores = np.array([0.9, 0.89, 0.7], np.float32)
    assert choose_diverse(on_circle(0, 1, 80), scores, 2, 0.5).tolist() == [0, 2]


def test_more_hits_than_there_are_give_all_of_them() -> None:
    assert sorted(choose_diverse(on_circle(0, 40), np.array([0.2, 0.1], np.float32), 5, 0.3).tolist()) == [0, 1]


def test_no_hits_give_none() -> None:
    nothing = np.empty((0, 2), np.float32)
    assert len(find_leaders(nothing)) == len(choose_diverse(nothing, np.empty(0, np.float32), 3, 0.5)) == 0


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_outside_of_0_and_1_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        choose_diverse(on_circle(0), np.ones(1, np.float32), 1, share)
    with pytest.raises(ConfigError, match="deduplicate"):
        find_leaders(on_circle(0), share)
