"""What clip-retrieval 2's client and front send, and what they expect."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from clip_retrieval import load_encoder
from clip_retrieval.errors import ClipRetrievalError

MODEL = "hash:16?size=32"
Serve = Callable[..., Any]
WORDS = ["cat", "dog", "rocket", "sun", "sea", "tree", "house", "boat"]


def of_client(**changed: Any) -> bytes:
    """Return the body that clip-retrieval 2's ClipClient sends."""
    usual = {
        "text": None, "image": None, "image_url": None, "embedding_input": None, "deduplicate": True,
        "use_safety_model": True, "use_violence_detector": True, "indice_name": "words", "use_mclip": False,
        "aesthetic_score": 9, "aesthetic_weight": 0.5, "modality": "image", "num_images": 40, "num_result_ids": 40,
    }  # fmt: skip
    return json.dumps({**usual, **changed}).encode()


def of_front(**changed: Any) -> bytes:
    """Return the body that clip-retrieval 2's front sends."""
    usual = {
        "text": "dog", "image": None, "image_url": None, "embedding_input": None, "modality": "image",
        "num_images": 40, "indice_name": "words", "num_result_ids": 3000, "use_mclip": False, "deduplicate": True,
        "use_safety_model": True, "use_violence_detector": True, "aesthetic_score": "9", "aesthetic_weight": "0.5",
    }  # fmt: skip
    return json.dumps({**usual, **changed}, separators=(",", ":")).encode()


def png_base64(seed: int = 1) -> str:
    file = io.BytesIO()
    Image.new("RGBA", (40, 40), (seed * 40 % 256, 90, 20, 128)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_the_names_of_the_indices_are_in_the_order_of_the_json_file(tmp_path: Path, index: Path, serve: Serve) -> None:
    shutil.copytree(index, tmp_path / "b")
    (tmp_path / "indices_paths.json").write_text(json.dumps({"z": str(index), "a": "b", "m": {"indice_folder": "b"}}))
    assert serve(tmp_path / "indices_paths.json").get("/indices-list").json() == ["z", "a", "m"]


@pytest.mark.parametrize("body", [of_client(text="dog"), of_front()], ids=["client", "front"])
def test_a_text_finds_its_row_with_metadata_without_nulls_and_nan(client: Any, body: bytes) -> None:
    answer = client.post("/knn-service", body)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    hits = answer.json()
    assert len(hits) == len(WORDS)
    assert hits[0].keys() == {"caption", "url", "id", "similarity"}  # the usual columns, no others
    assert (hits[0]["caption"], hits[0]["id"]) == ("dog", 1)
    assert hits[0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert [hit["similarity"] for hit in hits] == sorted((hit["similarity"] for hit in hits), reverse=True)
    assert "url" not in next(hit for hit in hits if hit["caption"] == "sea")


def test_text_goes_before_picture_before_url_before_vector(client: Any) -> None:
    vector = load_encoder(MODEL).encode_texts(["sun"])[0].tolist()
    body = {"modality": "image", "num_images": 1, "indice_name": None, "text": "", "embedding_input": vector}
    assert client.post("/knn-service", body).json()[0]["caption"] == "sun"
    with_text = client.post("/knn-service", body | {"text": "cat", "image": png_base64()})
    assert with_text.json()[0]["caption"] == "cat"
    with_picture = client.post("/knn-service", body | {"image": png_base64()}).json()[0]
    assert with_picture["similarity"] != pytest.approx(1)


def test_a_vector_that_is_not_of_length_one_gives_its_inner_products(client: Any) -> None:
    vector = 3 * load_encoder(MODEL).encode_texts(["sun"])[0]
    body = of_client(embedding_input=vector.tolist(), num_images=1, num_result_ids=1)
    assert client.post("/knn-service", body).json()[0]["similarity"] == pytest.approx(3, abs=1e-4)


def test_a_picture_is_a_query_with_or_without_a_data_url(client: Any) -> None:
    plain = client.post("/knn-service", of_client(image=png_base64())).json()
    as_url = client.post("/knn-service", of_client(image=f"data:image/png;base64,{png_base64()}")).json()
    assert plain == as_url
    assert len(plain) == len(WORDS)


def test_results_beyond_num_images_have_id_and_similarity_only(client: Any) -> None:
    hits = client.post("/knn-service", of_front(num_images=2, num_result_ids=5)).json()
    assert len(hits) == 5
    assert all("caption" in hit for hit in hits[:2])
    assert all(hit.keys() == {"id", "similarity"} for hit in hits[2:])


def test_the_metadata_of_ids_is_a_list_in_their_order(client: Any) -> None:
    answer = client.post("/metadata", {"ids": [3, 0, 3], "indice_name": "words"}).json()
    assert [item["id"] for item in answer] == [3, 0, 3]
    assert answer[0]["metadata"] == {"caption": "sun", "url": "http://example.org/sun.jpg"}
    assert client.post("/metadata", {"ids": [], "indice_name": "words"}).json() == []


def test_metadata_returns_the_columns_that_are_named(client: Any) -> None:
    (about,) = client.get("/v1/indices").json()["indices"]
    (row,) = client.post("/metadata", {"ids": [3], "columns": about["columns"]}).json()
    assert row["metadata"].keys() == {"caption", "url", "width", "aesthetic", "secret", "tags"}
    for columns, said in ((["none"], "no column 'none'"), ("width", "list of names"), ([1], "list of names")):
        answer = client.post("/metadata", {"ids": [3], "columns": columns})
        assert (answer.status_code, said in answer.json()["message"]) == (400, True)


@pytest.mark.parametrize("path", ["//knn-service", "/knn-service", "///knn-service"])
def test_more_slashes_lead_to_the_same_place(client: Any, path: str) -> None:
    answer = client.run(client.http.post(f"http://localhost{path}", content=of_front()))
    assert answer.status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_the_content_type_says_nothing(client: Any, kind: str) -> None:
    assert client.post("/knn-service", of_front(), headers={"content-type": kind}).json()[0]["caption"] == "dog"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "valid JSON"),
        (b"[1]", 400, "not an object"),
        (of_client(), 400, "one of text, image"),
        (of_client(text=""), 400, "one of text, image"),
        (of_client(text=5), 400, "text is a text"),
        (of_client(image="AAAA"), 400, "cannot be used as a picture"),
        (of_client(image="\u00e4"), 400, "not valid base64"),
        (of_client(embedding_input=[1.0]), 400, "1 dimensions, the index has 16"),
        (of_client(embedding_input=["1"] * 16), 400, "list of numbers"),
        (of_client(embedding_input=[[1.0], [2.0, 3.0]]), 400, "list of numbers"),
        (of_client(embedding_input=[0.0] * 16), 400, "no direction"),
        (of_client(embedding_input=[1e300] * 16), 400, "no direction"),
        (of_client(text="dog", indice_name="other"), 404, "no index 'other'; there are words"),
        (of_client(text="dog", num_images="many"), 400, "num_images must be a number"),
        (of_client(text="dog", num_images=-1), 400, "num_images must be a number"),
        (of_client(text="dog", num_images=True), 400, "num_images must be a number of hits, not true"),
        (of_client(text="dog", num_result_ids={"a": 1}), 400, 'num_result_ids must be a number of hits, not {"a":1}'),
        (of_client(text="dog", num_images=None), 400, "num_images is missing: give the number of hits"),
        (
            b'{"image": 5, "embedding_input": {}}',
            400,
            "image is a text, not a number; embedding_input is a list of numbers, not an object; num_images is missing",
        ),
        (b"{}", 400, "give one of text, image (base64), image_url and embedding_input; num_images is missing"),
        (of_client(text="dog", modality="text"), 400, "no text index, only image"),
        (of_client(image_url="http://example.org/x.jpg"), 403, "fetches no pictures"),
    ],
)
def test_what_cannot_be_answered_is_told(client: Any, body: bytes, status: int, said: str) -> None:
    answer = client.post("/knn-service", body)
    assert (answer.status_code, said in answer.json()["message"]) == (status, True), answer.text


@pytest.mark.parametrize("ids", [[8], [-1], [2**70], ["1"], [1.5], [True], 3, None])
def test_ids_that_are_no_rows_are_told(client: Any, ids: object) -> None:
    answer = client.post("/metadata", {"ids": ids, "indice_name": "words"})
    assert answer.status_code == 400
    assert "message" in answer.json()


def test_numbers_may_be_texts_as_the_front_sends_scores(client: Any) -> None:
    for score, weight in (("", ""), (None, None), (15, 1), ("5", "0.5")):
        body = of_front(aesthetic_score=score, aesthetic_weight=weight, num_images="1", num_result_ids=None)
        assert len(client.post("/knn-service", body).json()) == 1


def test_near_duplicates_of_better_hits_are_left_out_and_not_made_up_for(
    tmp_path: Path, write_index: Callable[..., Path], serve: Serve
) -> None:
    rows = load_encoder(MODEL).encode_texts(["cat", "cat", "dog"])
    rows[1] += np.float32(1e-3)
    served = serve(write_index(tmp_path / "ix", pd.DataFrame({"caption": ["a", "b", "c"]}), rows=rows))
    body = {"text": "cat", "modality": "image", "num_images": 2, "indice_name": None}
    assert [hit["id"] for hit in served.post("/knn-service", body).json()] == [0, 1]
    assert [hit["id"] for hit in served.post("/knn-service", body | {"deduplicate": True}).json()] == [0]


def test_a_front_is_told_where_its_server_is(index: Path, client: Any, serve: Serve) -> None:
    assert client.get("/config.json").json() == {
        "defaultBackend": "http://localhost:1234", "defaultIndex": "", "urlColumn": "url", "backend": ".",
    }  # fmt: skip
    other = serve(index, default_backend="https://example.org", url_column="link").get("/config.json").json()
    assert other == {"defaultBackend": "https://example.org", "defaultIndex": "", "urlColumn": "link"}


def test_the_figures_have_the_names_that_dashboards_ask_for(index: Path, serve: Serve) -> None:
    client = serve(index)
    assert client.get("/metrics-summary").text == "No request yet, go do some"
    client.post("/knn-service", of_front())
    lines = client.get("/metrics").text.splitlines()
    for name in ("full_knn_request_time", "text_clip_inference_time", "knn_index_time", "metadata_get_time"):
        assert f"{name}_count 1.0" in lines
        assert any(line.startswith(f"{name}_sum ") for line in lines)
    summary = client.get("/metrics-summary").text
    assert summary.startswith("Among 1 calls to the knn end point with an average latency of 0.")
    assert "knn_index_time" in summary


def test_only_the_columns_to_return_are_returned(index: Path, serve: Serve) -> None:
    client = serve(index, columns_to_return=["width", "caption"])
    assert client.post("/knn-service", of_front()).json()[0].keys() == {"width", "caption", "id", "similarity"}
    answer = client.post("/v1/search", {"queries": ["dog"], "columns": ["secret"]})
    assert (answer.status_code, "no column 'secret'" in answer.text) == (400, True)
    answer = client.post("/metadata", {"ids": [0], "columns": ["secret"]})
    assert (answer.status_code, "no column 'secret'" in answer.text) == (400, True)


def test_no_sentence_about_a_condition_names_a_column_that_is_not_returned(index: Path, serve: Serve) -> None:
    client = serve(index, columns_to_return=["width", "caption"])
    answer = client.post("/v1/search", {"queries": ["dog"], "where": "secre = 'x'"})
    assert answer.status_code == 400
    assert answer.json()["message"] == (
        "where: there is no column secre. The columns are caption, id, width; put texts in single quotes"
    )


def test_each_index_of_a_json_file_has_options_of_its_own(
    tmp_path: Path, index: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    said = {
        "one": {"indice_folder": str(index), "columns_to_return": ["secret"], "enable_hdf5": True, "colour": 1},
        "two": {"indice_folder": str(index)},
    }
    (tmp_path / "paths.json").write_text(json.dumps(said))
    client = serve(tmp_path / "paths.json")
    assert "secret" in client.post("/knn-service", of_front(indice_name="one")).json()[0]
    assert "secret" not in client.post("/knn-service", of_front(indice_name="two")).json()[0]
    assert "colour is not an option of an index" in caplog.text
    assert "--enable_hdf5 changes nothing" in caplog.text


def test_an_index_of_clip_retrieval_2_is_served_as_it_is(
    tmp_path: Path, write_index: Callable[..., Path], serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_index(tmp_path / "old", pd.DataFrame({"caption": ["a", "b"], "image_path": "x.jpg"}), manifest=None)
    client = serve(folder)
    assert "ViT-B/32 is used" in caplog.text
    body = {"embedding_input": [1.0] * 16, "modality": "image", "num_images": 2, "indice_name": "old"}
    assert [hit["image_path"] for hit in client.post("/knn-service", body).json()] == ["x.jpg"] * 2
    said = {"indice_folder": str(folder), "clip_model": MODEL, "use_jit": True, "enable_faiss_memory_mapping": False}
    (tmp_path / "paths.json").write_text(json.dumps({"old": said}))
    named = serve(tmp_path / "paths.json")
    assert named.post("/knn-service", of_front(indice_name="old", text="b")).json()[0]["caption"] == "b"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "names no index"),
        ([], "cannot be used"),
        ({"a": 3}, "cannot be used"),
        ({"a": {}}, "names no indice_folder"),
        ({"a": {"indice_folder": "/x", "provide_safety_model": True}}, "provide_safety_model is not supported"),
        ({"a": {"indice_folder": "/x", "columns_to_return": 3.5, "memory_map": "maybe"}}, "memory_map takes True or"),
        ({"a": "nowhere"}, "there is no index folder .*nowhere"),
    ],
)
def test_a_json_file_that_names_no_indices_is_one_sentence(
    tmp_path: Path, serve: Serve, said: object, message: str
) -> None:
    (tmp_path / "paths.json").write_text(json.dumps(said))
    with pytest.raises(ClipRetrievalError, match=message):
        serve(tmp_path / "paths.json")


def test_flags_of_clip_retrieval_2_work_or_are_refused_by_name(
    index: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    works = {
        "enable_hdf5": True, "enable_faiss_memory_mapping": True, "reorder_metadata_by_ivf_index": True,
        "default_backend": None, "url_column": "url", "enable_mclip_option": True, "use_jit": True, "use_arrow": True,
        "provide_safety_model": False, "provide_violence_detector": False, "provide_aesthetic_embeddings": True,
        "clip_model": MODEL, "columns_to_return": ["caption"], "port": 1234,
    }  # fmt: skip
    assert len(serve(index, **works).post("/knn-service", of_client(text="dog")).json()) == len(WORDS)
    for name in ("enable_hdf5", "enable_mclip_option", "use_arrow", "provide_aesthetic_embeddings"):
        assert f"--{name} changes nothing" in caplog.text
    for name in ("provide_safety_model", "provide_violence_detector"):
        with pytest.raises(ClipRetrievalError, match=f"--{name} is not supported"):
            serve(index, **{name: True})


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        (None, {"caption", "image_path", "url"}),
        (["url", "caption"], {"caption", "url"}),
        (["caption"], {"caption"}),
    ],
)
def test_pictures_that_were_fetched_have_a_url_for_its_clients(
    tmp_path: Path, write_index: Any, serve: Serve, columns: list[str] | None, wanted: set[str]
) -> None:
    places = ["https://example.org/cat.jpg?a=1", "/srv/pictures/dog.jpg", None]
    metadata = pd.DataFrame({"caption": ["cat", "dog", "sun"], "image_path": places})
    client = serve(write_index(tmp_path / "words", metadata), columns_to_return=columns)
    hits = {hit["caption"]: hit for hit in client.post("/knn-service", of_client(text="cat")).json()}
    assert set(hits["cat"]) - {"id", "similarity"} == wanted
    assert hits["cat"].get("url") == (places[0] if "url" in wanted else None)
    assert "url" not in hits["dog"]
    assert "url" not in hits["sun"]
    (row,) = client.post("/metadata", {"ids": [0], "indice_name": "words"}).json()
    assert set(row["metadata"]) == wanted
