"""The measured quality of an index, as image.json, reports and programs show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clip_retrieval.index.measuring.tuning import SettingValues, Target
from clip_retrieval.layout import Modality
from clip_retrieval.search.settings import format_settings

RECALLS = (1, 10, 100)
Recalls = Mapping[int, float | None]  # key: k; None if a query has nothing to find


@dataclass(frozen=True)
class Times:
    """Milliseconds of single queries for ten hits, one after the other."""

    mean: float
    p50: float
    p99: float

    def to_json(self) -> dict[str, float]:
        return {"mean": round(self.mean, 4), "p50": round(self.p50, 4), "p99": round(self.p99, 4)}


@dataclass(frozen=True)
class QueryQuality:
    """Recall and time of queries of one modality.

    recall@k: the mean share of a query's k nearest rows, by exact inner products, among the first k answers.
    """

    query_count: int
    recalls: Recalls
    times: Times

    def to_json(self) -> dict[str, Any]:
        recalls = {f"recall@{k}": rounded(recall) for k, recall in self.recalls.items()}
        return {"queries": self.query_count, **recalls, "ms": self.times.to_json()}


@dataclass(frozen=True)
class CurvePoint:
    """Other settings: recall@10 by modality of the queries, and the time of one query: a low percentile of a few."""

    settings: SettingValues
    recalls: Mapping[Modality, float | None]
    ms: float

    def to_json(self) -> dict[str, Any]:
        recalls = {f"{modality} recall@10": rounded(recall) for modality, recall in self.recalls.items()}
        return {"index_param": format_settings(self.settings), **recalls, "ms": round(self.ms, 4)}


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The measurements of one index, and the settings chosen for its searches."""

    settings: SettingValues
    by_modality: Mapping[Modality, QueryQuality | None]  # key: modality of the queries; None if there are none
    times: Times  # all queries together
    curve: Sequence[CurvePoint]
    target: Target | None  # None if the settings were given, not chosen
    reconstruction_error: float | None = None  # percent; None if the index cannot tell
    seconds: float = 0.0  # time of measuring, without finding the exact neighbors

    @property
    def mean_recall(self) -> float | None:
        """Return the mean recall@10 over the modalities of queries, the goal of tuning."""
        recalls = [quality.recalls.get(10) for quality in self.by_modality.values() if quality]
        known = [recall for recall in recalls if recall is not None]
        return sum(known) / len(known) if known else None

    def shortfall(self) -> str | None:
        """Return a sentence if the settings miss the target."""
        if self.target is None:
            return None
        recall, wanted, limit = self.mean_recall, self.target.wanted_recall, self.target.max_query_ms
        if self.times.p50 > limit:
            took = f"a query took {self.times.p50:.2g} ms, more than the {limit:g} ms that were allowed"
            if any(point.ms <= limit for point in self.curve):
                return f"{took}, though less when settings were tried: the machine was busy; tune again when it is not"
            return f"{took}, even with the fastest settings"
        if wanted is not None and recall is not None and recall < wanted:
            return (
                f"recall@10 of {wanted:g} was not reached within {limit:g} ms a query: it is {recall:.3f}; allow more "
                "time (--max_index_query_time_ms) or memory (--max_index_memory_usage)"
            )
        return None

    def to_json(self) -> dict[str, Any]:
        """Return what image.json has under `quality`."""
        target = self.target
        return {
            "index_param": format_settings(self.settings),
            "image": show(self.by_modality.get("image")),
            "text": show(self.by_modality.get("text")),
            "target": target
            and {"max_index_query_time_ms": target.max_query_ms, "wanted_recall": target.wanted_recall},
            "shortfall": self.shortfall(),
            "curve": [point.to_json() for point in self.curve],
            "seconds": round(self.seconds, 2),
        }

    def info(self) -> dict[str, Any]:
        """Return the keys of image.json: those of autofaiss that this measures, and ours."""
        keys: dict[str, Any] = {
            "index_param": format_settings(self.settings),
            "avg_search_speed_ms": round(self.times.mean, 4),
            "99p_search_speed_ms": round(self.times.p99, 4),
        }
        if self.reconstruction_error is not None:
            keys["reconstruction error %"] = round(self.reconstruction_error, 4)
        return {**keys, "quality": self.to_json()}


def show(quality: QueryQuality | None) -> dict[str, Any] | None:
    return None if quality is None else quality.to_json()


def rounded(recall: float | None) -> float | None:
    return None if recall is None else round(recall, 4)
