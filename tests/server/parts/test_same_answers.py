"""Parts that search exactly answer as one index of all rows does."""

from __future__ import annotations

import base64
import math
import re
from typing import Any

import numpy as np
import pytest

from clip_retrieval.options import build_config
from clip_retrieval.server.config import BackConfig
from clip_retrieval.server.run import listening
from tests.server.conftest import open_client
from tests.server.parts.conftest import ENDS, ROWS, TWINS, Parts

QUERIES: list[Any] = ["dog", "cat - 0.5*sea", [{"id": 130}, {"text": "sun", "weight": 0.3}], [{"id": 5}, {"id": 239}]]


def search(client: Any, *queries: Any, **options: Any) -> dict[str, Any]:
    found = client.post("/v1/search", {"queries": list(queries or QUERIES), **options})
    assert found.status_code == 200, found.text
    said: dict[str, Any] = found.json()
    assert "index-partial" not in found.headers
    return said


def ids_of(result: dict[str, Any]) -> list[int]:
    """Return the ids of hits, with one id for both twins."""
    return [TWINS[0] if hit["id"] in TWINS else hit["id"] for hit in result["hits"]]


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for ours, theirs in zip(found["results"], wanted["results"], strict=True):
        for key in ("query", "kind"):
            assert ours[key] == theirs[key]
        assert ids_of(ours) == ids_of(theirs)
        for one, other in zip(ours["hits"], theirs["hits"], strict=True):
            assert one["similarity"] == pytest.approx(other["similarity"], abs=1e-5)
            assert {name: one[name] for name in ("rank", "metadata")} == {
                name: other[name] for name in ("rank", "metadata")
            }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"limit": 1},
        {"limit": 500},  # more than there are, and more than one trip takes
        {"limit": 7, "offset": 30},
        {"threshold": 0.2, "limit": 50},
        {"where": "width >= 500", "limit": 30},
        {"where": "width = 37", "limit": 5},
        {"where": "width < 0"},
        {"deduplicate": 0.94, "limit": 60},
        {"deduplicate": 0.3, "limit": 40},
        {"diverse": 0.5, "limit": 15},
        {"diverse": 0.3, "deduplicate": 0.9, "where": "width < 800", "threshold": -0.5, "limit": 10, "offset": 3},
        {"columns": ["width"], "limit": 3},
        {"columns": []},
    ],
    ids=str,
)
def test_hits_are_those_of_one_index(front: Any, one: Any, options: dict[str, Any]) -> None:
    assert_same(search(front, **options), search(one, **options))


def test_parts_may_be_in_parts_themselves(parts: Parts, one: Any, front: Any) -> None:
    inner_options = {"port": 0, "reload_seconds": 0, "parts": parts.urls[1:], "part_timeout": 30.0}
    with (
        listening(build_config(BackConfig, inner_options)) as inner,
        open_client("indices_paths.json", {"parts": [parts.urls[0], inner.url], "part_timeout": 30.0}) as outer,
    ):
        for options in ({}, {"diverse": 0.5, "limit": 15}, {"where": "width >= 500", "deduplicate": 0.9}):
            assert_same(search(outer, **options), search(one, **options))
        ours, theirs = (search(client, surprise=1e9)["results"] for client in (outer, front))
        assert [hit["surprise"] for hit in ours[0]["hits"]] == pytest.approx(
            [hit["surprise"] for hit in theirs[0]["hits"]]
        )


def test_parts_that_give_few_hits_are_asked_in_pieces_or_not_at_all(parts: Parts, one: Any) -> None:
    inner_options = {"port": 0, "reload_seconds": 0, "parts": parts.urls, "part_timeout": 30.0}
    with (
        listening(build_config(BackConfig, {**inner_options, "max_results": 60, "max_queries": 3})) as inner,
        open_client("indices_paths.json", {"parts": [inner.url], "part_timeout": 30.0}) as outer,
    ):
        queries = [[{"id": number}] for number in range(30, 45)]
        for options in ({"limit": 59}, {"limit": 59, "embeddings": True}, {"limit": 10, "diverse": 0.5}):
            assert_same(search(outer, *queries, **options), search(one, *queries, **options))
        ids = list(range(0, 240, 2))
        body = {"ids": ids, "columns": ["caption"]}
        assert outer.post("/metadata", body).json() == one.post("/metadata", body).json()
        for refused, said in (
            ({"limit": 60}, "give at most 60 hits"),
            ({"limit": 20, "diverse": 0.1}, "ask for at most 15"),
        ):
            found = outer.post("/v1/search", {"queries": queries, **refused})
            assert (found.status_code, said in found.json()["message"]) == (400, True)
        told = search(outer, "dog", limit=20, deduplicate=0.05)["results"][0]["how"]
        assert "only the nearest 60 rows were compared, as many as the parts give" in told


def test_equal_hits_come_in_the_order_of_their_ids(front: Any) -> None:
    for _ in range(3):
        (result,) = search(front, [{"id": 7}, {"id": 7}], limit=1)["results"]
        assert result["hits"][0]["id"] == TWINS[1]  # its twin was asked with
    vector = search(front, [{"id": 7}], limit=1, embeddings=True)["results"][0]["hits"][0]["embedding"]
    (result,) = search(front, [{"embedding": vector}], limit=2)["results"]
    assert [hit["id"] for hit in result["hits"]] == list(TWINS)


def test_a_vector_is_what_the_parts_are_sent_to_the_last_bit(front: Any) -> None:
    vector = np.random.default_rng(1).standard_normal(16)
    (result,) = search(front, [{"embedding": vector.tolist()}], limit=1)["results"]
    packed = base64.b64encode((vector / np.linalg.norm(vector)).astype("<f4").tobytes()).decode()
    assert search(front, [{"embedding": packed}], limit=1)["results"][0]["hits"] == result["hits"]


def test_embeddings_come_from_the_part_that_has_the_row(front: Any, one: Any) -> None:
    options = {"limit": 5, "embeddings": True, "encoding_format": "base64"}
    ours, theirs = (
        [hit["embedding"] for result in search(client, **options)["results"] for hit in result["hits"]]
        for client in (front, one)
    )
    assert ours == theirs


def test_surprise_is_the_sum_over_the_parts_and_the_answer_says_so(front: Any, one: Any) -> None:
    options: dict[str, Any] = {"surprise": 1e9, "limit": 50}
    for ours, theirs in zip(search(front, **options)["results"], search(one, **options)["results"], strict=True):
        assert "sum over the parts" in " ".join(ours["how"])
        assert ids_of(ours) == ids_of(theirs)
        ratios = [a["surprise"] / b["surprise"] for a, b in zip(ours["hits"][5:], theirs["hits"][5:], strict=True)]
        assert 0.4 < math.exp(np.mean(np.log(ratios))) < 2.5  # each part's own spread, out of some 30 to 50 rows
    kept = search(front, [{"id": 7}], surprise=0.5, limit=20)["results"][0]
    assert [hit["id"] for hit in kept["hits"]][:1] == [TWINS[1]]
    assert all(hit["surprise"] < 0.5 for hit in kept["hits"])
    assert re.search("19 of the nearest rows were left out|of the nearest rows were left out", " ".join(kept["how"]))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"deduplicate": True},
        {"num_images": 3, "num_result_ids": 240, "deduplicate": True},
        {"num_images": 0, "num_result_ids": 0},
        {"num_images": 5, "num_result_ids": 2},
        {"text": None, "embedding_input": [3.0] * 16},
    ],
    ids=str,
)
def test_the_endpoint_of_clip_retrieval_2_answers_the_same(front: Any, one: Any, changed: dict[str, Any]) -> None:
    body = {"text": "dog", "modality": "image", "num_images": 40, "indice_name": None, **changed}
    ours, theirs = front.post("/knn-service", body).json(), one.post("/knn-service", body).json()
    for hits in (ours, theirs):
        for hit in hits:
            hit["similarity"] = hit["similarity"] if hits is ours else pytest.approx(hit["similarity"], abs=1e-5)
            hit["id"] = TWINS[0] if hit["id"] in TWINS else hit["id"]
    assert ours == theirs


def test_metadata_comes_from_every_part_in_the_order_of_the_ids(front: Any, one: Any) -> None:
    ids = [ROWS - 1, 0, *ENDS[1:3], ENDS[1] - 1, 0]
    bodies: list[dict[str, Any]] = [{"ids": ids}, {"ids": ids, "columns": ["width"]}, {"ids": []}]
    for body in bodies:
        assert front.post("/metadata", body).json() == one.post("/metadata", body).json()
    for client in (front, one):
        wrong = client.post("/metadata", {"ids": [ROWS]})
        assert (wrong.status_code, "ids are 0 to 239" in wrong.text) == (400, True)


def test_rows_come_with_embeddings_on_request(front: Any, one: Any) -> None:
    body = {"ids": [200, 3, 3], "embeddings": True, "columns": ["caption"]}
    ours, theirs = front.post("/v1/rows", body).json(), one.post("/v1/rows", body).json()
    assert ours["rows"] == theirs["rows"]
    assert [row["metadata"]["caption"] for row in ours["rows"]] == ["row 200", "row 3", "row 3"]


def test_the_index_is_described_as_one(front: Any, one: Any) -> None:
    (ours,), (theirs,) = (client.get("/v1/indices").json()["indices"] for client in (front, one))
    for name in ("clip_model", "fingerprint", "dimension", "rows", "columns", "usual_columns", "metric"):
        assert ours[name] == theirs[name]
    assert [(part["first_id"], part["rows"], part["problem"]) for part in ours["parts"]] == [
        (0, 100, None), (100, 61, None), (161, 79, None),
    ]  # fmt: skip
    assert front.get("/indices-list").json() == ["index"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"where": "id >= 5"}, "no condition over id"),
        ({"where": "lower(caption) = 'x' or ID < 3"}, "no condition over id"),
        ({"where": "nothing = 1"}, "there is no column nothing"),
        ({"where": "(SELECT 1)"}, "where"),
        ({"columns": ["none"]}, "no column 'none'"),
        ({"modality": "text"}, "no text index"),
        ({"queries": [[{"id": 240}]]}, "the index has no row 240; its ids are 0 to 239"),
        ({"queries": [[{"embedding": [1.0, 2.0]}]]}, "2 dimensions, the index has 16"),
        ({"queries": [[{"embedding": "no base64"}]]}, "base64"),
        ({"queries": [[{"image": "bm8gcGljdHVyZQ=="}]]}, "picture"),
        ({"limit": 10_000, "queries": [[{"id": 3}]]}, "the parts of this index give at most 10,000 hits"),
        ({"limit": 10_001}, "10,000 (max_results)"),
    ],
    ids=str,
)
def test_what_parts_cannot_be_asked_is_told(front: Any, body: dict[str, Any], said: str) -> None:
    found = front.post("/v1/search", {"queries": ["dog"], **body})
    assert (found.status_code, said in found.json()["message"]) == (400, True), found.text
    assert "--" not in found.json()["message"]
