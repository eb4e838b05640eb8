"""/v1: the queries of `filter` over HTTP."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from clip_retrieval import load_encoder
from clip_retrieval.layout import IndexFolder
from clip_retrieval.query.answer import answer
from clip_retrieval.query.config import SearcherConfig, SelectionConfig
from clip_retrieval.query.searcher import open_searcher

MODEL = "hash:16?size=32"


def ask(client: Any, *queries: object, **options: Any) -> list[list[dict[str, Any]]]:
    """Return the hits of each query."""
    found = client.post("/v1/search", {"queries": list(queries), **options})
    assert found.status_code == 200, found.text
    return [result["hits"] for result in found.json()["results"]]


def captions(hits: list[dict[str, Any]]) -> list[str]:
    return [hit["metadata"]["caption"] for hit in hits]


def test_several_queries_have_an_answer_each_in_their_order(client: Any) -> None:
    dog, sea = ask(client, "dog", "sea", limit=3)
    assert (captions(dog)[0], captions(sea)[0]) == ("dog", "sea")
    assert [hit["rank"] for hit in dog] == [1, 2, 3]
    assert dog[0]["metadata"] == {
        "caption": "dog", "url": "http://example.org/dog.jpg", "width": 200, "aesthetic": 1.0,
        "secret": "secret dog", "tags": ["dog", None],
    }  # fmt: skip


def test_an_answer_is_that_of_filter(index: Path, client: Any) -> None:
    options: dict[str, Any] = {"where": "width >= 300", "threshold": -0.5, "diverse": 0.3}
    searcher = open_searcher(IndexFolder(str(index)), SearcherConfig())
    wanted = answer(searcher, searcher.embed_text("sun"), SelectionConfig(num_results=4, **options))
    found = client.post("/v1/search", {"queries": ["sun"], "limit": 4, **options}).json()["results"][0]
    assert [hit["id"] for hit in found["hits"]] == wanted.found.ids.tolist()
    assert [hit["similarity"] for hit in found["hits"]] == pytest.approx(wanted.found.scores.tolist(), abs=1e-5)
    assert found["how"] == list(wanted.how)


def test_terms_are_added_up_with_their_weights(client: Any) -> None:
    encoder = load_encoder(MODEL)
    cat, dog = encoder.encode_texts(["cat", "dog"])
    total = cat - 0.5 * dog
    wanted = ask(client, [{"embedding": (total / np.linalg.norm(total)).tolist()}])[0]
    for query in ("cat - 0.5*dog", [{"text": "cat"}, {"text": "dog", "weight": -0.5}]):
        found = ask(client, query)[0]
        assert [hit["similarity"] for hit in found] == pytest.approx([hit["similarity"] for hit in wanted], abs=1e-5)


def test_more_like_a_row_leaves_that_row_out(client: Any) -> None:
    (hits,) = ask(client, [{"id": 3}])
    assert len(hits) == 7
    assert "sun" not in captions(hits)


def test_a_text_that_names_a_file_is_a_text(client: Any, tmp_path: Path) -> None:
    path = tmp_path / "dog.png"
    Image.new("RGB", (32, 32)).save(path)
    found = client.post("/v1/search", {"queries": [str(path)]}).json()["results"][0]
    assert found["kind"] == "text"


def test_pages_join_to_the_whole(client: Any) -> None:
    (whole,) = ask(client, "tree", limit=8)
    pages = [ask(client, "tree", limit=3, offset=offset)[0] for offset in (0, 3, 6)]
    assert [hit["id"] for page in pages for hit in page] == [hit["id"] for hit in whole]
    assert [hit["rank"] for hit in pages[1]] == [4, 5, 6]


def test_embeddings_come_on_request_as_numbers_or_base64(client: Any) -> None:
    (plain,) = ask(client, "dog", limit=1, embeddings=True)
    (packed,) = ask(client, "dog", limit=1, embeddings=True, encoding_format="base64")
    wanted = load_encoder(MODEL).encode_texts(["dog"])[0]
    assert plain[0]["embedding"] == pytest.approx(wanted.tolist(), abs=1e-6)
    assert np.frombuffer(base64.b64decode(packed[0]["embedding"]), "<f4") == pytest.approx(wanted, abs=1e-6)


def test_a_vector_may_come_as_base64(client: Any) -> None:
    vector = load_encoder(MODEL).encode_texts(["dog"])[0]
    packed = base64.b64encode(vector.astype("<f4").tobytes()).decode()
    assert captions(ask(client, [{"embedding": packed}], limit=1)[0]) == ["dog"]


def test_rows_come_by_their_ids(client: Any) -> None:
    said = client.post("/v1/rows", {"ids": [3, 1], "columns": ["caption"], "embeddings": True}).json()
    assert [(row["id"], row["metadata"]) for row in said["rows"]] == [(3, {"caption": "sun"}), (1, {"caption": "dog"})]
    wanted = load_encoder(MODEL).encode_texts(["dog"])[0]
    assert said["rows"][1]["embedding"] == pytest.approx(wanted.tolist(), abs=1e-6)
    for body, told in (({"ids": [8]}, "ids are 0 to 7"), ({"ids": [1], "modality": "text"}, "no text index")):
        found = client.post("/v1/rows", body)
        assert (found.status_code, told in found.json()["message"]) == (400, True)


def test_texts_and_pictures_are_embedded_as_openai_does(client: Any) -> None:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "PNG")
    picture = base64.b64encode(file.getvalue()).decode()
    said = client.post("/v1/embed", {"input": ["dog", {"image": picture}], "model": "any"}).json()
    assert (said["object"], said["model"]) == ("list", MODEL)
    assert [item["index"] for item in said["data"]] == [0, 1]
    encoder = load_encoder(MODEL)
    assert said["data"][0]["embedding"] == pytest.approx(encoder.encode_texts(["dog"])[0].tolist(), abs=1e-6)
    pixels = np.full((1, 32, 32, 3), (255, 0, 0), np.uint8)
    assert said["data"][1]["embedding"] == pytest.approx(encoder.encode_images(pixels)[0].tolist(), abs=1e-6)
    assert client.post("/v1/embeddings", {"input": "dog"}).json()["data"] == said["data"][:1]


def test_only_some_columns_are_returned_where_some_are_named(client: Any) -> None:
    (hits,) = ask(client, "dog", limit=1, columns=["width", "caption"])
    assert hits[0]["metadata"] == {"width": 200, "caption": "dog"}
    assert ask(client, "dog", limit=1, columns=[])[0][0]["metadata"] == {}


def test_indices_are_described(client: Any) -> None:
    (about,) = client.get("/v1/indices").json()["indices"]
    assert (about["name"], about["rows"], about["dimension"]) == ("words", {"image": 8}, 16)
    assert about["clip_model"] == MODEL
    assert "secret" in about["columns"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"queries": []}, "0 queries"),
        ({"queries": ["x"] * 65}, "65 queries"),
        ({"queries": [""]}, "empty"),
        ({"queries": ["x" * 10_001]}, "10,001"),
        ({"queries": [[]]}, "0 terms"),
        ({"queries": [[{"text": "a", "id": 1}]]}, "exactly one"),
        ({"queries": [[{"text": "a", "weight": -1}]]}, "no term of the query has a positive weight"),
        ({"queries": [[{"text": "a", "weight": 0}]]}, "no term of the query has a positive weight"),
        ({"queries": [[{"image": "%%"}]]}, "not valid base64"),
        ({"queries": [[{"image": "AA_A"}]]}, "not valid base64"),
        ({"queries": ["cat - cat"]}, "cancel each other"),
        ({"queries": [[{"id": 99}]]}, "no row 99"),
        ({"queries": [[{"embedding": [1.0]}]]}, "dimensions"),
        ({"queries": [[{"embedding": "!"}]]}, "base64"),
        ({"queries": [[{"image": "!"}]]}, "picture"),
        ({"limit": 0}, "limit must be 1 or more"),
        ({"limit": 2_001, "embeddings": True}, "2,000 hits, not 2,001"),
        ({"queries": ["x"] * 64, "limit": 10_000}, "100,000 hits, not 640,000"),
        ({"limit": 10_001}, "10,000 (max_results)"),
        ({"offset": -1}, "offset 0 or more"),
        ({"where": "nothing = 1"}, "there is no column nothing"),
        ({"where": "(SELECT 1)"}, "where takes conditions"),
        ({"where": "read_csv('/etc/passwd') = 1"}, "read_csv is not a function"),
        ({"threshold": 3}, "between -1 and 1"),
        ({"deduplicate": 3}, "between 0 and 1"),
        ({"diverse": -1}, "between 0 and 1"),
        ({"surprise": -1}, "above 0"),
        ({"modality": "text"}, "no text index"),
        ({"modality": "sound"}, "modality: invalid enum value 'sound'"),
        ({"limit": "3"}, "limit: expected `int`, got `str`"),
        ({"colour": 1}, "colour"),
        ({"columns": ["none"]}, "no column 'none'"),
    ],
)
def test_what_cannot_be_asked_is_told(client: Any, changed: dict[str, Any], said: str) -> None:
    found = client.post("/v1/search", {"queries": ["dog"], **changed})
    assert (found.status_code, said in found.json()["message"]) == (400, True), found.text
    assert "--" not in found.json()["message"]


def test_a_bad_query_among_good_requests_fails_alone(client: Any) -> None:
    async def ask_all() -> list[int]:
        bodies = [{"queries": ["dog" if place % 3 else "cat - cat"]} for place in range(30)]
        answers = await asyncio.gather(*[client.http.post("/v1/search", json=body) for body in bodies])
        return [found.status_code for found in answers]

    assert client.run(ask_all()) == [200 if place % 3 else 400 for place in range(30)]


def test_surprise_says_how_many_rows_chance_puts_as_high(
    tmp_path: Path, write_index: Callable[..., Path], serve: Any, unit_rows: Callable[..., Any]
) -> None:
    rows = unit_rows(300, 16)
    client = serve(write_index(tmp_path / "ix", pd.DataFrame({"caption": [str(i) for i in range(300)]}), rows=rows))
    (hits,) = ask(client, [{"embedding": rows[7].tolist()}], surprise=0.5, limit=5)
    assert hits[0]["id"] == 7
    assert all(0 <= hit["surprise"] < 0.5 for hit in hits)


@pytest.mark.parametrize("escape", ["\\ud800", "\\uD800 and more", "\\udc00", "\\ud800\\u0041"])
def test_half_a_character_is_told(client: Any, escape: str) -> None:
    found = client.post("/v1/search", f'{{"queries": ["{escape}"]}}'.encode())
    assert (found.status_code, "half of a surrogate pair" in found.json()["message"]) == (400, True), found.text
    cut = client.post("/v1/search", b'{"queries": ["\\ud83d\\ude00')
    assert (cut.status_code, "surrogate" in cut.json()["message"]) == (400, False), cut.text
