"""`index --dry_run`: the kinds of index that could be built, their costs, and which one would be chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clip_retrieval.embeddings.vectors import Vectors
from clip_retrieval.errors import IndexBuildError
from clip_retrieval.index.build import make_bounds
from clip_retrieval.index.building.named_kinds import make_given
from clip_retrieval.index.config import IndexConfig
from clip_retrieval.index.engines.faiss import check_expected_size, describe_problem
from clip_retrieval.index.folder.checks import check_folders, check_rows, find_vectors
from clip_retrieval.index.folder.obstacles import find_obstacle
from clip_retrieval.index.measuring.given_rehearsal import measure_given
from clip_retrieval.index.measuring.rehearsal import rehearse
from clip_retrieval.index.planning.measured import choose_measured, is_candidate
from clip_retrieval.index.planning.plan import ROWS_FOR_LISTS, fits, given_plan, list_plans, make_plan
from clip_retrieval.index.planning.shapes import Plan, Problem
from clip_retrieval.layout import INDEX_SUFFIX, EmbeddingsFolder, IndexFolder, Modality
from clip_retrieval.search.cores import using_cores

NOTE_OF_UPDATE = "an update changes the index in place if it can; this is what building it from scratch would make"


@dataclass(frozen=True, kw_only=True)
class Preview:
    """For each modality, the possible kinds and the one that would be built; None: none fits, and why.

    `obstacle` says why no index can be written, if that is so; `note` applies to everything.
    """

    problems: Mapping[Modality, Problem]
    plans: Mapping[Modality, Sequence[Plan]]
    chosen: Mapping[Modality, Plan | None]
    refusals: Mapping[Modality, str]
    obstacle: str | None = None
    note: str | None = None

    @property
    def is_refused(self) -> bool:
        """Say whether building would end with one of these sentences."""
        return bool(self.refusals or self.obstacle)

    def to_json(self) -> dict[str, Any]:
        return {
            modality: {
                "chosen": plan.to_json() if plan else None,
                "refusal": self.refusals.get(modality, self.obstacle),
                "note": self.note,
                "candidates": [
                    {**other.to_json(), "fits": fits(other, self.problems[modality])} for other in self.plans[modality]
                ],
            }
            for modality, plan in self.chosen.items()
        }


def preview_indices(config: IndexConfig) -> Preview:
    """Look at the embeddings' headers, and try kinds on a sample; raises ClipRetrievalError that names a wrong file."""
    with using_cores(config.nb_cores):
        return preview_within(config)


def preview_within(config: IndexConfig) -> Preview:
    source, target = EmbeddingsFolder(config.embeddings_folder), IndexFolder(config.index_folder)
    check_folders(config, source, target)
    found = find_vectors(config, source)
    check_rows(source, found)
    bounds = make_bounds(config, found)
    problems = {
        modality: describe_problem(vectors, bounds, config.distribution.nb_indices_to_keep)
        for modality, vectors in found.items()
    }
    chosen: dict[Modality, Plan | None] = {}
    refusals: dict[Modality, str] = {}
    plans: dict[Modality, Sequence[Plan]] = {}
    for modality, problem in problems.items():
        try:
            plan, plans[modality] = try_plans(found[modality], problem)
            chosen[modality] = plan
            check_expected_size(plan, problem.bounds)
        except IndexBuildError as error:
            chosen[modality], refusals[modality] = None, str(error)
            plans.setdefault(modality, list_plans(problem))
    note = NOTE_OF_UPDATE if config.update and target.names("", INDEX_SUFFIX) else None
    return Preview(
        problems=problems,
        plans=plans,
        chosen=chosen,
        refusals=refusals,
        obstacle=find_obstacle(target),
        note=note,
    )


def try_plans(vectors: Vectors, problem: Problem) -> tuple[Plan, list[Plan]]:
    """Return the plan that would be followed, and all plans; candidates are tried on a sample.

    Raises IndexBuildError if nothing fits.
    """
    plans = list_plans(problem)
    key = problem.bounds.index_key
    rehearsal = rehearse(vectors, problem, least=1 if key else ROWS_FOR_LISTS + 1)
    if key:
        given = given_plan(problem, key)
        make_given(given)  # raises if faiss does not know it
        chosen = measure_given(rehearsal, given) if rehearsal else given
        return chosen, [*(plan for plan in plans if plan.key != key), chosen]
    if rehearsal is None:
        return make_plan(problem), plans
    chosen = choose_measured(problem, rehearsal.measure)
    tried = [rehearsal.measure(plan) if is_candidate(plan, problem) else plan for plan in plans]
    return chosen, [chosen if plan.key == chosen.key else plan for plan in tried]
