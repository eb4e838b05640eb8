"""Does the index contain the query? Scores relative to its background: one threshold for every model and query.

Cosines of two models cannot be compared, and cosines of two queries hardly. What can be compared is how many rows of
the index would score as high by chance (like the E-value of sequence searches; Altschul et al., 1990): the scores of a
query over unrelated rows are close to a normal distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.search.held_rows import sample_held
from clip_retrieval.search.index import Index

SAMPLE_ROWS = 4_096  # the error of the deviation is about 2 %
FEWEST_ROWS = 32  # for a meaningful background


@dataclass(frozen=True)
class Spread:
    """How the scores of a query over the rows of an index are spread that it does not mean: a normal distribution."""

    row_count: float
    middle: float
    deviation: float

    def expected_as_high(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return for each score how many rows would be as high if none of them meant the query."""
        scale = self.deviation * math.sqrt(2)
        tails = [math.erfc((float(score) - self.middle) / scale) / 2 for score in scores]
        return self.row_count * np.array(tails, np.float64)


@dataclass(frozen=True)
class Background:
    """Random rows of an index, and how many rows it has in all."""

    rows: NDArray[np.float32]  # [n, d], unit length
    row_count: int

    def spread(self, query: NDArray[np.float32]) -> Spread | None:
        """Return the spread of a query's scores; None if the index has too few rows for it.

        It is taken from the lower half of the background's scores, which hits do not reach, since an index may be full
        of hits.
        """
        if len(self.rows) < FEWEST_ROWS:
            return None
        background = self.rows @ query
        middle = float(np.median(background))
        below = background[background <= middle] - middle
        return Spread(self.row_count, middle, math.sqrt(float(np.mean(below**2))) or 1e-9)

    def expected_as_high(self, query: NDArray[np.float32], scores: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return for each score how many rows would be as high by chance; NaN if there are too few rows."""
        spread = self.spread(query)
        return expected_by(() if spread is None else (spread,), scores)


def expected_by(spreads: Sequence[Spread], scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return for each score how many rows would be as high by chance, all spreads together; NaN without one."""
    if not spreads:
        return np.full(len(scores), np.nan)
    return np.asarray(np.sum([spread.expected_as_high(scores) for spread in spreads], axis=0), np.float64)


def read_background(index: Index) -> Background:
    """Draw the background of an index: some thousand rows, the same ones each time."""
    return Background(sample_held(index, SAMPLE_ROWS), index.row_count - len(index.empty_rows))
