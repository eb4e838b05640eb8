"""Partitions: contiguous, complete, even, and a function of sizes alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_retrieval.inference.plan import Cut, count_partitions

SIZE = 10


@given(unit_count=st.integers(0, 10_000), partition_count=st.integers(1, 300))
def test_partitions_cover_the_input_once_in_order(unit_count: int, partition_count: int) -> None:
    plan = Cut(unit_count, partition_count)

    assert [unit for part in plan for unit in range(part.start, part.stop)] == list(range(unit_count))
    assert [part.id for part in plan] == list(range(partition_count))
    assert {part.count for part in plan} == {partition_count}


@given(unit_count=st.integers(0, 10_000), partition_count=st.integers(1, 300))
def test_sizes_of_partitions_differ_by_one_at_most(unit_count: int, partition_count: int) -> None:
    sizes = [part.stop - part.start for part in Cut(unit_count, partition_count)]

    assert max(sizes) - min(sizes) <= 1


@given(partition_count=st.integers(1, 300))
def test_names_sort_as_numbers_do(partition_count: int) -> None:
    names = [part.name for part in Cut(0, partition_count)]

    assert names == sorted(names)


@pytest.mark.parametrize(("count", "digits"), [(1, 1), (9, 1), (10, 2), (99, 2), (100, 3)])
def test_names_have_the_digits_of_the_count(count: int, digits: int) -> None:
    assert len(Cut(0, count)[0].name) == digits


@pytest.mark.parametrize(("unit_count", "expected"), [(0, 1), (1, 1), (SIZE - 1, 1), (SIZE, 1), (SIZE + 1, 2)])
def test_a_partition_holds_about_as_many_samples_as_asked(unit_count: int, expected: int) -> None:
    assert count_partitions(unit_count, 1, SIZE) == expected


@given(unit_count=st.integers(0, 10_000), samples_per_unit=st.integers(1, 20_000), wanted=st.integers(1, 2_000_000))
def test_planned_partitions_are_never_larger_than_asked(unit_count: int, samples_per_unit: int, wanted: int) -> None:
    count = count_partitions(unit_count, samples_per_unit, wanted)

    assert count * wanted >= unit_count * samples_per_unit
    assert count == 1 or (count - 1) * wanted < unit_count * samples_per_unit
