"""A new build in the same folder replaces the old one, and no request fails meanwhile."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clip_retrieval import clip_index
from clip_retrieval.server.config import ServedConfig
from clip_retrieval.server.indices import EncoderPool, open_generation
from clip_retrieval.server.named import NamedIndex

WriteRun = Callable[..., Path]


def build(folder: Path, rows: Any, write_run: WriteRun, label: str) -> Path:
    write_run(folder / "embeddings", [rows.astype(np.float16)], label=label)
    clip_index(str(folder / "embeddings"), str(folder / "index"), index_key="Flat")
    return folder / "index"


def look(client: Any) -> bool:
    """Look for a new build twice: it is opened once its files have stopped changing."""
    served = next(iter(client.served.indices.served.values()))
    return bool(served.look() or served.look())


def ask(client: Any, row: Any) -> Any:
    return client.post("/knn-service", {"embedding_input": row.tolist(), "num_images": 1, "modality": "image"})


def test_a_new_build_is_served_and_says_so(
    tmp_path: Path, write_run: WriteRun, unit_rows: Callable[..., Any], serve: Any
) -> None:
    rows = unit_rows(50)
    client = serve(build(tmp_path, rows, write_run, "old"))
    before = ask(client, rows[3])
    old = client.served.indices.get(None).generation
    assert not look(client)
    build(tmp_path, rows[::-1].copy(), write_run, "new")
    assert look(client)
    after = ask(client, rows[3])
    assert (before.json()[0]["caption"], after.json()[0]["caption"]) == ("old 3", "new 46")
    generation = after.headers["index-generation"]
    assert generation not in ("", before.headers["index-generation"])
    assert old.first.metadata is not None  # requests with the old build can read it to the end
    assert old.first.metadata.rows(np.array([3])).to_pylist()[0]["caption"] == "old 3"


def test_ids_of_an_older_build_are_refused(
    tmp_path: Path, write_run: WriteRun, unit_rows: Callable[..., Any], serve: Any
) -> None:
    client = serve(build(tmp_path, unit_rows(20), write_run, "old"))
    old = client.get("/v1/indices").json()["indices"][0]["generation"]
    for wanted in ({"generation": old}, {}):
        assert client.post("/metadata", {"ids": [1], **wanted}, headers={"index-generation": old}).status_code == 200
    build(tmp_path, unit_rows(20, seed=1), write_run, "new")
    assert look(client)
    by_field = client.post("/metadata", {"ids": [1], "generation": old})
    by_header = client.post("/metadata", {"ids": [1]}, headers={"index-generation": old})
    new = client.get("/v1/indices").json()["indices"][0]["generation"]
    assert [(answer.status_code, answer.headers["index-generation"]) for answer in (by_field, by_header)] == [
        (409, new)
    ] * 2
    assert client.post("/v1/search", {"queries": [[{"id": 1}]], "generation": old}).status_code == 409
    assert client.post("/metadata", {"ids": [1]}).json()[0]["metadata"]["caption"] == "new 1"


def test_a_build_that_a_request_names_is_opened_at_once_and_no_other(
    tmp_path: Path, write_run: WriteRun, unit_rows: Callable[..., Any], serve: Any
) -> None:
    folder = build(tmp_path, unit_rows(20), write_run, "old")
    client = serve(folder, reload_seconds=3000)
    old = client.get("/v1/indices").json()["indices"][0]["generation"]
    build(tmp_path, unit_rows(20, seed=1), write_run, "new")
    new = open_generation(NamedIndex("index", str(folder), ServedConfig()), EncoderPool()).id

    def ask(generation: str) -> Any:
        return client.post("/metadata", {"ids": [1], "generation": generation})

    for _ in range(2):
        assert ask("0123").status_code == 409  # the new build is there, but nobody has asked for it
        assert ask(old).json()[0]["metadata"]["caption"] == "old 1"
    assert ask(new).json()[0]["metadata"]["caption"] == "new 1"
    assert ask(old).status_code == 409
    assert client.get("/v1/pictures/index/1", params={"generation": old}).status_code == 409


def test_the_same_build_has_the_same_generation_everywhere(
    tmp_path: Path, write_run: WriteRun, unit_rows: Callable[..., Any], serve: Any
) -> None:
    found = []
    for name in ("a", "b"):
        client = serve(build(tmp_path / name, unit_rows(20), write_run, "same"))
        found.append(client.get("/v1/indices").json()["indices"][0]["generation"])
    assert found[0] == found[1]


def test_a_build_that_cannot_be_opened_leaves_the_old_one(
    tmp_path: Path, write_run: WriteRun, unit_rows: Any, serve: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rows = unit_rows(20)
    client = serve(build(tmp_path, rows, write_run, "old"))
    broken = tmp_path / "index" / "broken"
    broken.write_bytes(b"no index")
    broken.replace(tmp_path / "index" / "image.index")
    assert not look(client)
    assert not look(client)
    assert caplog.text.count("is not served") == 1
    assert ask(client, rows[3]).json()[0]["caption"] == "old 3"


def test_nothing_is_answered_from_a_mapped_file_that_was_overwritten_in_place(
    tmp_path: Path, write_run: WriteRun, unit_rows: Any, serve: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rows = unit_rows(20)
    file = build(tmp_path, rows, write_run, "old") / "image.index"
    client, whole = serve(tmp_path / "index"), file.read_bytes()
    assert ask(client, rows[3]).status_code == 200
    file.write_bytes(bytes(len(whole)))  # neither shorter, which would end this process, nor another inode
    assert not look(client)
    answers = [
        ask(client, rows[3]),
        client.post("/metadata", {"ids": [1]}),
        client.post("/v1/search", {"queries": [[{"id": 1}]]}),
        client.get("/v1/pictures/index/1"),
        client.get("/readyz"),
    ]
    assert [answer.status_code for answer in answers] == [503] * 5
    assert all(f"{file} was overwritten in place while it was served" in answer.text for answer in answers)
    assert not look(client)
    assert caplog.text.count("index does not answer until it has a complete build") == 1

    build(tmp_path, rows, write_run, "new")
    assert client.post("/metadata", {"ids": [1]}).status_code == 503  # another inode, but the old one is still mapped
    look(client)
    assert ask(client, rows[3]).json()[0]["caption"] == "new 3"


def test_metadata_that_was_overwritten_in_place_comes_from_parquet_at_the_next_look(
    tmp_path: Path, write_run: WriteRun, unit_rows: Any, serve: Any
) -> None:
    file = build(tmp_path, unit_rows(20), write_run, "old") / "metadata.arrow"
    client = serve(tmp_path / "index")
    file.write_bytes(bytes(file.stat().st_size))
    served = next(iter(client.served.indices.served.values()))
    served.look()
    assert client.post("/metadata", {"ids": [1]}).status_code == 503
    served.look()
    assert client.post("/metadata", {"ids": [1]}).json()[0]["metadata"]["caption"] == "old 1"


def test_a_mapped_file_that_is_as_it_was_is_answered_from_again(
    tmp_path: Path, write_run: WriteRun, unit_rows: Any, serve: Any
) -> None:
    rows = unit_rows(20)
    file = build(tmp_path, rows, write_run, "old") / "image.index"
    client, facts, whole = serve(tmp_path / "index"), file.stat(), file.read_bytes()
    file.write_bytes(bytes(len(whole)))
    look(client)
    assert ask(client, rows[3]).status_code == 503
    file.write_bytes(whole)
    look(client)
    assert ask(client, rows[3]).status_code == 200
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    look(client)
    assert ask(client, rows[3]).json()[0]["caption"] == "old 3"


def test_an_index_in_memory_is_answered_from_while_its_file_is_overwritten(
    tmp_path: Path, write_run: WriteRun, unit_rows: Any, serve: Any
) -> None:
    rows = unit_rows(20)
    file = build(tmp_path, rows, write_run, "old") / "image.index"
    client = serve(tmp_path / "index", memory_map=False)
    file.write_bytes(b"no index")
    assert not look(client)
    assert ask(client, rows[3]).json()[0]["caption"] == "old 3"


def test_no_request_fails_while_builds_change(
    tmp_path: Path, write_run: WriteRun, unit_rows: Callable[..., Any], serve: Any
) -> None:
    rows = unit_rows(50)
    client = serve(build(tmp_path, rows, write_run, "0"))
    statuses, is_over = [], threading.Event()

    def ask_on() -> None:
        while not is_over.is_set():
            answer = ask(client, rows[7])
            statuses.append((answer.status_code, answer.json()[0]["id"]))

    asking = threading.Thread(target=ask_on)
    asking.start()
    for number in range(1, 4):
        build(tmp_path, rows, write_run, str(number))
        look(client)
    is_over.set()
    asking.join()
    assert set(statuses) == {(200, 7)}
    assert ask(client, rows[7]).json()[0]["caption"] == "3 7"


def test_rows_whose_file_was_replaced_are_those_of_the_new_build(
    tmp_path: Path, write_index: Callable[..., Path], serve: Any
) -> None:
    """Metadata that is read from parquet files, before the next look at the folder."""

    def write(label: str) -> Path:
        shutil.rmtree(tmp_path / "index", ignore_errors=True)
        return write_index(tmp_path / "index", pd.DataFrame({"caption": [f"{label} {row}" for row in range(8)]}))

    client = serve(write("old"), reload_seconds=3000)
    old = client.get("/v1/indices").json()["indices"][0]["generation"]
    write("new")
    assert client.post("/metadata", {"ids": [1], "generation": old}).status_code == 409
    assert client.post("/metadata", {"ids": [1]}).json()[0]["metadata"]["caption"] == "new 1"
    write("newer")
    hit = client.post("/knn-service", {"embedding_input": [1.0] * 16, "num_images": 1, "modality": "image"})
    assert hit.json()[0]["caption"].startswith("newer")
