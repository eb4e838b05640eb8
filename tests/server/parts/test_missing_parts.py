"""A part that is dead, slow, busy or another one is named in every answer, and asked again when it is back."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from clip_retrieval import clip_index, clip_inference
from clip_retrieval.clip_client import ClipClient
from clip_retrieval.errors import ClipRetrievalError
from clip_retrieval.options import build_config
from clip_retrieval.server.config import BackConfig
from clip_retrieval.server.run import listening
from tests.server.conftest import open_client
from tests.server.parts.conftest import Doors, Parts, serve_folders

SECONDS = 60
ASK = {"text": "dog", "modality": "image", "num_images": 240, "indice_name": None}


def search(client: Any, **options: Any) -> Any:
    return client.post("/v1/search", {"queries": [[{"embedding": [1.0] * 16}]], "limit": 240, **options})


def ids_of(found: Any) -> set[int]:
    return {hit["id"] for hit in found.json()["results"][0]["hits"]}


@pytest.mark.parametrize("options", [{}, {"deduplicate": 0.99}, {"embeddings": True}], ids=str)
def test_an_answer_names_the_part_that_is_dead_and_its_rows(open_doors: Parts, front: Any, options: Any) -> None:
    open_doors.set(2, "shut")
    found = search(front, **options)
    (missing,) = found.json()["partial"]
    assert missing == {"part": 2, "first_id": 100, "rows": 61, "problem": "it cannot be reached"}
    assert found.headers["index-partial"] == "no answer of part 2"
    assert any("without part 2, rows 100 to 160" in how for how in found.json()["results"][0]["how"])
    assert ids_of(found) <= {*range(100), *range(161, 240)}
    assert len(ids_of(found)) >= 177  # two of these rows have near-duplicates
    open_doors.set(2, "open")
    found = search(front, **options)
    assert "partial" not in found.json()
    assert 150 in ids_of(found)


def test_the_endpoints_of_clip_retrieval_2_say_so_in_a_header(open_doors: Parts, front: Any) -> None:
    open_doors.set(2, "shut")
    hits = front.post("/knn-service", ASK)
    assert hits.headers["index-partial"] == "no answer of part 2"
    assert len(hits.json()) == 179
    rows = front.post("/metadata", {"ids": [5, 120, 200]})
    assert rows.headers["index-partial"] == "no answer of part 2"
    assert [row["id"] for row in rows.json()] == [5, 200]


def test_the_python_client_warns_of_a_partial_answer(open_doors: Parts, caplog: pytest.LogCaptureFixture) -> None:
    options = {"port": 0, "reload_seconds": 0, "parts": open_doors.urls, "part_timeout": 30.0}
    with listening(build_config(BackConfig, options)) as server:
        client = ClipClient(f"{server.url}/knn-service", "index", num_images=3)
        assert client.query(text="dog")
        assert "without some of its rows" not in caplog.text
        open_doors.set(2, "shut")
        assert client.search("dog")
        assert f"{server.url}/v1/search answers without some of its rows: no answer of part 2" in caplog.text


def test_a_part_that_is_in_parts_itself_says_what_it_lacks(open_doors: Parts) -> None:
    options = {"port": 0, "reload_seconds": 0, "parts": open_doors.urls[1:], "part_timeout": 30.0}
    with (
        listening(build_config(BackConfig, options)) as inner,
        open_client("indices_paths.json", {"parts": [open_doors.urls[0], inner.url], "part_timeout": 30.0}) as outer,
    ):
        open_doors.set(3, "shut")
        wanted = {"part": 2, "first_id": 161, "rows": 79, "problem": "its part 2: it cannot be reached"}
        assert search(outer).json()["partial"] == [wanted]
        assert search(outer, deduplicate=0.99).json()["partial"] == [wanted]
        rows = outer.post("/v1/rows", {"ids": [3, 120, 200]}).json()
        assert ([row["id"] for row in rows["rows"]], rows["partial"]) == ([3, 120], [wanted])


def test_what_only_the_dead_part_has_is_503_with_a_sentence(open_doors: Parts, front: Any) -> None:
    open_doors.set(2, "shut")
    asked = [
        front.post("/metadata", {"ids": [120]}),
        front.post("/v1/search", {"queries": [[{"id": 120}]]}),
        front.get("/v1/pictures/index/120"),
    ]
    for found in asked:
        assert (found.status_code, "part 2: it cannot be reached" in found.json()["message"]) == (503, True)


def test_texts_are_encoded_by_a_part_that_lives(open_doors: Parts, front: Any) -> None:
    for dead in (1, 2, 3):
        open_doors.set(dead, "shut")
        assert front.post("/v1/embed", {"input": ["dog", "cat"]}).status_code == 200
        open_doors.set(dead, "open")


def test_all_parts_dead_is_503_and_the_server_is_not_ready(open_doors: Parts, front: Any) -> None:
    wait_until(lambda: front.get("/readyz").json()["status"] == "ready")
    for part in (1, 2, 3):
        open_doors.set(part, "shut")
    for found in (search(front), front.post("/knn-service", ASK), front.post("/v1/embed", {"input": "dog"})):
        assert (found.status_code, "cannot be reached" in found.json()["message"]) == (503, True)
    wait_until(lambda: front.get("/readyz").status_code == 503)  # an answer of /readyz is kept for a second
    assert front.get("/healthz").status_code == 200
    open_doors.set(1, "open")
    assert len(ids_of(search(front))) == 100
    wait_until(lambda: front.get("/readyz").status_code == 200)
    assert set(front.get("/readyz").json()["partial"]["index"]) == {"part 2", "part 3"}


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_figures_count_each_part(open_doors: Parts, front: Any) -> None:
    open_doors.set(2, "shut")
    search(front)
    text = front.get("/metrics").text
    assert 'clip_retrieval_part_up{index="index",part="1"} 1.0' in text
    assert 'clip_retrieval_part_up{index="index",part="2"} 0.0' in text
    for name in ("clip_retrieval_part_requests_total", "clip_retrieval_part_missing_total"):
        assert re.search(rf'{name}{{index="index"[^}}]*part="2"', text)
    assert re.search(r'clip_retrieval_part_retries_total{index="index",part="2"} [1-9]', text)


def test_texts_of_a_request_are_encoded_once_and_together(parts: Parts, front: Any) -> None:
    def embedded() -> float:
        texts = [front.run(metrics(url)) for url in parts.urls]
        found = [re.findall(r'requests_total{route="/v1/embed",status="200"} ([\d.]+)', text) for text in texts]
        return sum(float(one[0]) for one in found if one)

    async def metrics(url: str) -> str:
        reply = await front.served.indices.connections.ask("GET", f"{url}/metrics")
        return str(reply.body.decode())

    before = embedded()
    found = front.post("/v1/search", {"queries": ["dog + cat", "sun", "sea - tree"], "limit": 1})
    assert found.status_code == 200
    assert embedded() == before + 1


def test_a_bad_text_among_good_requests_fails_alone(front: Any) -> None:
    async def ask_all() -> list[int]:
        bodies = [{"queries": ["dog" if place % 3 else "cat - cat"]} for place in range(12)]
        answers = await asyncio.gather(*[front.http.post("/v1/search", json=body) for body in bodies])
        return [found.status_code for found in answers]

    assert front.run(ask_all()) == [200 if place % 3 else 400 for place in range(12)]


def test_overload_of_a_part_is_passed_on(parts: Parts, front: Any) -> None:
    admission = parts.servers[2].served.app.admission
    admission.in_work += 10_000
    found = search(front)
    admission.in_work -= 10_000
    assert (found.status_code, found.headers["retry-after"]) == (429, "1")
    assert "part 3 of the index is too busy" in found.json()["message"]
    assert search(front).status_code == 200


def build(folder: Path, rows: Any, write_run: Callable[..., Path], label: str) -> Path:
    write_run(folder / "embeddings", [rows.astype(np.float16)], label=label)
    clip_index(str(folder / "embeddings"), str(folder / "index"), index_key="Flat")
    return folder / "index"


def test_a_part_that_is_built_anew_is_a_new_generation_and_fails_no_request(
    tmp_path: Path, write_run: Any, unit_rows: Any
) -> None:
    rows = unit_rows(60)
    folders = [build(tmp_path / name, rows[:20], write_run, name) for name in ("a", "b")]
    ask = {"embedding_input": rows[15].tolist(), "num_images": 1, "modality": "image"}
    with (
        serve_folders(folders) as servers,
        open_client("indices_paths.json", {"parts": [server.url for server in servers], "part_timeout": 60.0}) as front,
    ):
        before = front.post("/knn-service", ask)
        assert before.json()[0]["id"] == 15
        old = before.headers["index-generation"]
        build(tmp_path / "a", rows[:50], write_run, "new")
        served = servers[0].served.indices.served["index"]
        assert served.look() or served.look()
        assert front.post("/knn-service", ask).json()[0]["caption"] == "new 15"  # its first news of the build
        after = front.post("/metadata", {"ids": [49, 50]})
        assert [row["metadata"]["caption"] for row in after.json()] == ["new 49", "b 0"]
        assert after.headers["index-generation"] != old
        for asked in ({"ids": [1], "generation": old}, {"ids": [1]}):
            headers = {} if "generation" in asked else {"index-generation": old}
            assert front.post("/metadata", asked, headers=headers).status_code == 409
        assert front.get("/v1/indices").json()["indices"][0]["rows"] == {"image": 70}


def test_a_part_of_another_model_is_refused_when_the_server_starts(
    tmp_path: Path, parts: Parts, write_index: Any, serve: Any
) -> None:
    other = {"clip_model": "hash:16?size=32&seed=1", "fingerprint": "another"}
    folder = write_index(tmp_path / "other", pd.DataFrame({"caption": ["a", "b"]}), manifest=other)
    with (
        serve_folders([folder]) as (server,),
        pytest.raises(ClipRetrievalError, match=f"{server.url} cannot be part 2 of index: it is of the model hash:16"),
    ):
        serve("indices_paths.json", parts=[parts.urls[0], server.url])


def test_a_part_of_another_dimension_is_refused_when_the_server_starts(
    tmp_path: Path, parts: Parts, write_index: Any, unit_rows: Any, serve: Any
) -> None:
    folder = write_index(tmp_path / "wide", pd.DataFrame({"caption": ["a", "b"]}), rows=unit_rows(2, 32))
    with (
        serve_folders([folder]) as (server,),
        pytest.raises(
            ClipRetrievalError, match=f"{server.url} cannot be part 2 .*: it has 32 dimensions, and the part"
        ),
    ):
        serve("indices_paths.json", parts=[parts.urls[0], server.url])


def test_a_part_that_has_become_another_models_is_left_out_and_told_of(
    tmp_path: Path, parts: Parts, write_index: Any, serve: Any, caplog: pytest.LogCaptureFixture
) -> None:
    other = {"clip_model": "hash:16?size=32&seed=1", "fingerprint": "another"}
    folder = write_index(tmp_path / "other", pd.DataFrame({"caption": ["a", "b"]}), manifest=other)
    client = serve("indices_paths.json", parts=parts.urls, part_timeout=60.0)
    served = client.served.indices.served["index"]
    with serve_folders([folder]) as (server,):
        place = served.links[2].place
        served.links[2].place = type(place)(server.url, None)  # another server has taken its address
        assert not served.look()
        assert f"{server.url} is no longer part 3 of index: it is of the model" in caplog.text
        (missing,) = search(client).json()["partial"]
        assert (missing["part"], "it is of the model" in missing["problem"]) == (3, True)
        served.links[2].place = place
        served.look()
        assert "partial" not in search(client).json()


def test_parts_that_want_a_key_get_it(tmp_path: Path, parts: Parts, serve: Any) -> None:
    (tmp_path / "keys").write_text("0123456789abcdef0\n")
    options = {"port": 0, "reload_seconds": 0, "api_key_file": str(tmp_path / "keys")}
    with listening(build_config(BackConfig, options, [str(parts.whole)])) as server:
        client = serve(
            "indices_paths.json", parts=[server.url], part_timeout=60.0, part_key_file=str(tmp_path / "keys")
        )
        assert len(ids_of(search(client))) == 240
        with pytest.raises(ClipRetrievalError, match=f"{server.url} cannot be part 1 of index: it answers 401: .*key"):
            serve("indices_paths.json", parts=[server.url])


def test_nobody_at_an_address_is_told_in_a_word(serve: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # taken, and without a listener
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ClipRetrievalError, match=rf"{url}, part 1 of index, does not answer \(Connect"):
            serve("indices_paths.json", parts=[url], part_wait=0)


def test_parts_that_are_not_there_are_waited_for_and_then_named(parts: Parts, serve: Any) -> None:
    house = Doors()
    door = house.add(parts.servers[0].url)
    house.set(door, "shut")
    try:
        with pytest.raises(ClipRetrievalError, match=f"{door.url}, part 2 of index, does not answer"):
            serve("indices_paths.json", parts=[parts.urls[0], door.url], part_wait=0, part_timeout=60.0)
    finally:
        house.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"parts": ["a:1234"]}, "a part is an address such as"),
        ({"parts": ["http://a:1", "http://a:1/"]}, "http://a:1 is there twice"),
        ({"parts": ["http://a:1"], "part_timeout": 0}, "part_timeout must be more than 0"),
        ({"parts": ["http://a:1"], "indices_paths": "x"}, "both parts and x are given"),
        ({"parts": ["http://a:1"], "part_key_file": "/nowhere"}, "part_key_file /nowhere cannot be read"),
    ],
    ids=str,
)
def test_options_that_mean_nothing_are_one_sentence(serve: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ClipRetrievalError, match=said):
        serve(options.pop("indices_paths", "indices_paths.json"), part_wait=0, **options)


def test_a_json_file_names_parts_beside_folders_and_an_index_of_a_server(
    tmp_path: Path, parts: Parts, serve: Any
) -> None:
    several = tmp_path / "several.json"
    several.write_text(json.dumps({"first": str(parts.whole), "second": str(parts.whole)}))
    (tmp_path / "key").write_text("0123456789abcdef\n")
    both = tmp_path / "both.json"
    with serve_folders([several]) as (server,):
        addresses = [parts.urls[0], f"{server.url}?index=second"]
        both.write_text(
            json.dumps({"near": str(parts.whole), "far": {"parts": addresses, "columns_to_return": ["width"]}})
        )
        client = serve(both, part_timeout=60.0, part_key_file=str(tmp_path / "key"))
        assert client.get("/indices-list").json() == ["near", "far"]
        (near, far) = client.get("/v1/indices").json()["indices"]
        assert (near["rows"], far["rows"], far["columns"]) == ({"image": 240}, {"image": 340}, ["width"])
        rows = client.post("/metadata", {"ids": [339], "indice_name": "far"}).json()
        assert rows == [{"id": 339, "metadata": {"width": 239 * 37 % 1000}}]
        assert client.post("/knn-service", {**ASK, "indice_name": "far"}).json()[0].keys() == {
            "width",
            "id",
            "similarity",
        }
        wait_until(lambda: client.get("/readyz").status_code == 200)
        wrong = tmp_path / "wrong.json"
        wrong.write_text(json.dumps({"far": {"parts": [f"{server.url}?index=third"]}}))
        with pytest.raises(ClipRetrievalError, match="it has no index 'third'; it has first, second"):
            serve(wrong)


def test_pictures_come_from_the_part_that_has_the_row(tmp_path: Path, serve: Any) -> None:
    folders = []
    for name, color in (("a", "red"), ("b", "blue")):
        (tmp_path / name / "photos").mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (40, 30 + number), color).save(tmp_path / name / f"photos/{number}.png")
        clip_inference(
            str(tmp_path / name / "photos"),
            str(tmp_path / name / "emb"),
            clip_model="hash:16?size=32",
            num_prepro_workers=0,
        )
        clip_index(str(tmp_path / name / "emb"), str(tmp_path / name / "index"), index_key="Flat")
        folders.append(tmp_path / name / "index")
    with serve_folders(folders) as servers:
        client = serve("indices_paths.json", parts=[server.url for server in servers], part_timeout=60.0)
        for row_id, rgb in ((0, (255, 0, 0)), (3, (0, 0, 255))):
            small = client.get(f"/v1/pictures/index/{row_id}?size=16")
            picture = Image.open(io.BytesIO(small.content)).convert("RGB")
            assert picture.size[0] == 16
            assert np.abs(np.array(picture.getpixel((5, 5))) - rgb).max() < 8
        original = client.get("/v1/pictures/index/3?original=1")
        assert original.content == (tmp_path / "b/photos/1.png").read_bytes()
        assert client.get("/v1/pictures/index/4").status_code == 404
        hits = client.post("/knn-service", {**ASK, "text": "x"}).json()
        assert len(hits) == 4
        assert all(Image.open(io.BytesIO(base64.b64decode(hit["image"]))).size[0] == 40 for hit in hits)
        packed = base64.b64encode((tmp_path / "b/photos/1.png").read_bytes()).decode()
        (result,) = client.post("/v1/search", {"queries": [[{"image": packed}]], "limit": 1}).json()["results"]
        assert (result["hits"][0]["id"] in (2, 3), result["kind"]) == (True, "image")
        assert client.post("/v1/search", {"queries": ["x"], "thumbnails": True}).json()["results"][0]["hits"][0][
            "metadata"
        ]["image"]
