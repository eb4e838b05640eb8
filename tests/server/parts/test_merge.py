"""Hits of parts as hits of one index, and which rows a part has."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_retrieval.query.surprise import Spread, expected_by
from clip_retrieval.server.parts.layout import About, Layout, NotAPartError, find_difference, read_about
from clip_retrieval.server.parts.merge import Hit, OfPart, Result, join_spreads, merge


def about(**changed: object) -> About:
    usual = {
        "name": "a",
        "generation": "1",
        "dimension": 4,
        "rows": {"image": 10},
        "clip_model": "m",
        "fingerprint": "f",
    }
    return About(**{**usual, **changed})  # type: ignore[arg-type]


def of_part(number: int, first_id: int, hits: list[tuple[int, float]], spread: Spread | None = None) -> OfPart:
    spreads = [] if spread is None else [spread]
    result = Result([Hit(row_id, score, {"row": first_id + row_id}) for row_id, score in hits], background=spreads)
    return OfPart(number, first_id, 10, result)


SCORES = st.lists(st.sampled_from([0.1, 0.2, 0.25, 0.5]), max_size=8)


@given(st.lists(SCORES, min_size=1, max_size=4), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_merged_hits_are_the_best_of_all_with_the_lower_id_first(scores: list[list[float]], count: int) -> None:
    parts, wanted = [], []
    for number, own in enumerate(scores):
        ranked = sorted(enumerate(own), key=lambda pair: (-pair[1], pair[0]))
        parts.append(of_part(number + 1, 10 * number, ranked))
        wanted += [(-score, 10 * number + row_id) for row_id, score in enumerate(own)]
    found, rows = merge(parts, count)
    assert found.ids.tolist() == [row_id for _, row_id in sorted(wanted)[:count]]
    assert [row["row"] for row in rows] == found.ids.tolist()
    merged_again, _ = merge(parts[::-1], count)  # in any order of answers
    assert merged_again.ids.tolist() == found.ids.tolist()


def test_surprise_of_equal_parts_is_that_of_one_index_of_their_rows() -> None:
    scores = np.array([0.3, 0.1, -0.2], np.float32)
    whole = Spread(20, 0.1, 0.05).expected_as_high(scores)
    half = Spread(10, 0.1, 0.05)
    both = [of_part(1, 0, [], half), of_part(2, 10, [], half)]
    small = of_part(2, 10, [])  # too few rows for a spread: counts as the others
    for parts in (both, [both[0], small]):
        assert expected_by(join_spreads(parts), scores) == pytest.approx(whole)
    assert np.isnan(expected_by(join_spreads([small]), scores)).all()


def test_ids_count_through_and_have_one_owner() -> None:
    layout = Layout("x", (about(rows={"image": 3}), about(rows={"image": 0}), about(rows={"image": 5})))
    assert layout.first_ids == (0, 3, 3, 8)
    assert layout.owners(np.arange(8)).tolist() == [0, 0, 0, 2, 2, 2, 2, 2]
    assert (layout.row_count, layout.rows) == (8, {"image": 8})


def test_the_generation_is_another_one_where_ids_may_mean_other_rows() -> None:
    first, second = about(generation="1"), about(generation="2")
    assert Layout("x", (first, second)).id == Layout("y", (first, second)).id
    assert len({Layout("x", parts).id for parts in ((first, second), (second, first), (first, first))}) == 3


def test_columns_are_those_of_all_parts_or_the_chosen_ones_among_them() -> None:
    old = about(columns=["caption", "image_path"], usual_columns=None)
    new = about(columns=["width", "caption"], usual_columns=["caption"])
    layout = Layout("x", (old, new))
    assert layout.columns(None) == ("caption", "image_path", "width")
    assert layout.usual_columns(None) == ("url", "image_path", "caption")
    assert layout.columns(["width", "none"]) == layout.usual_columns(["width", "none"]) == ("width",)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"fingerprint": "g", "clip_model": "n"}, r"is of the model n \(fingerprint g\), and the part before it of m"),
        ({"dimension": 5}, "has 5 dimensions, and the part before it 4"),
        ({"metric": "l2"}, "answers l2 instead of inner products"),
        ({"rows": {"text": 10}}, "has text rows, and the part before it image rows"),
        ({"fingerprint": None, "clip_model": "n"}, "is of the model n, and the part"),
    ],
)
def test_a_part_that_does_not_fit_is_told(changed: dict[str, object], said: str) -> None:
    assert re.match(said, find_difference(about(**changed), about()) or "")


@pytest.mark.parametrize("changed", [{"clip_model": "other name"}, {"fingerprint": None}, {"generation": "9"}])
def test_a_part_with_the_same_weights_fits(changed: dict[str, object]) -> None:
    assert find_difference(about(**changed), about()) is None


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"indices": []}', b'{"indices": [{"name": "a"}]}'])
def test_what_is_no_server_of_ours_is_told(body: bytes) -> None:
    with pytest.raises(NotAPartError):
        read_about(body, None)
