"""`end2end`: one command from an input to an index that answers."""

from __future__ import annotations

import io
import json
import socket
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from clip_retrieval import clip_end2end
from clip_retrieval.cli import cli
from clip_retrieval.clip_client import ClipClient
from clip_retrieval.end2end.config import End2EndConfig
from clip_retrieval.end2end.recognize import recognize
from clip_retrieval.end2end.run import back_config, run_end2end
from clip_retrieval.errors import ConfigError, SourceError
from clip_retrieval.options import build_config
from clip_retrieval.server.run import listening

MODEL = "hash:16?size=32"
WORDS = ["cat", "dog", "rocket", "sun"]
USUAL: dict[str, Any] = {"clip_model": MODEL, "num_prepro_workers": 0, "device": "cpu"}

# A program with img2dataset's options: it writes tars in the form of its webdataset output.
PROGRAM = """#!{python}
import io, json, sys, tarfile
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print(json.dumps(options))
if "broken" in options["--url_list"]:
    sys.exit(3)
with tarfile.open(options["--output_folder"] + "/00000.tar", "w") as tar:
    for row, word in enumerate({words!r}):
        about = json.dumps(dict(url="u/" + word)).encode()
        parts = dict(jpg=open({jpeg!r}, "rb").read(), txt=word.encode(), json=about)
        for suffix, data in parts.items():
            member = tarfile.TarInfo(f"{{row:09d}}.{{suffix}}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
"""


def jpeg_bytes(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Give the address of a web server of pictures, and a table of their urls and captions as img2dataset wants it."""
    folder = tmp_path / "www"
    folder.mkdir()
    for seed, word in enumerate(WORDS):
        (folder / f"{word}.jpg").write_bytes(jpeg_bytes(seed))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    table = pd.DataFrame({"URL": [f"{url}/{word}.jpg" for word in WORDS], "TEXT": WORDS, "license": "cc0"})
    table.to_parquet(tmp_path / "urls.parquet")
    yield url, tmp_path / "urls.parquet"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Give a folder of four pictures with captions."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed, word in enumerate(WORDS):
        (folder / f"{word}.jpg").write_bytes(jpeg_bytes(seed))
        (folder / f"{word}.txt").write_text(word)
    return folder


def test_the_positional_form_leads_from_urls_to_an_index_that_answers(tmp_path: Path, web: tuple[str, Path]) -> None:
    options = {**USUAL, "allow_private_addresses": True, "port": 0}
    config = build_config(End2EndConfig, options, [str(web[1]), str(tmp_path / "out"), False])
    result = run_end2end(config)
    assert (result.input_format, result.summary.stats.image_count, result.summary.stats.text_count) == ("urls", 4, 4)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"embeddings", "index", "indices_paths.json"}
    assert json.loads((tmp_path / "out/indices_paths.json").read_text()) == {"out": "index"}
    with listening(back_config(config, result)) as server, ClipClient(server.url, "out") as client:
        hits = client.search("dog", modality="text")
        assert hits[0]["metadata"] == {"image_path": f"{web[0]}/dog.jpg", "caption": "dog", "license": "cc0"}
        front = httpx.get(f"{server.url}/config.json").json()
        assert front["urlColumn"] == "image_path"  # where a front finds the addresses of these pictures


def test_the_same_command_does_only_what_is_left(tmp_path: Path, pictures: Path) -> None:
    out = tmp_path / "out"
    clip_end2end(str(pictures), str(out), run_back=False, **USUAL)
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    (out / "indices_paths.json").write_text('{"mine": "index"}')
    again = clip_end2end(str(pictures), str(out), run_back=False, **USUAL)
    assert (again.summary.already_done, again.indices.is_as_before) == (1, True)
    assert {path: path.stat().st_mtime_ns for path in made if path.name.endswith((".npy", ".index"))} == {
        path: time for path, time in made.items() if path.name.endswith((".npy", ".index"))
    }
    assert (out / "indices_paths.json").read_text() == '{"mine": "index"}'  # changed by hand, and kept
    (pictures / "new.jpg").write_bytes(jpeg_bytes(9))
    updated = clip_end2end(str(pictures), str(out), run_back=False, update=True, **USUAL)
    assert updated.indices.infos["image"]["nb vectors"] == 5


def test_a_run_that_was_killed_between_stages_goes_on_with_the_next(tmp_path: Path, pictures: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="'much' is not a size"):  # before anything is embedded
        clip_end2end(str(pictures), str(out), run_back=False, max_index_memory_usage="much", **USUAL)
    assert not out.exists()
    clip_end2end(str(pictures), str(out), run_back=False, **USUAL)
    for path in sorted((out / "index").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    again = clip_end2end(str(pictures), str(out), run_back=False, **USUAL)
    assert (again.summary.already_done, again.indices.is_as_before) == (1, False)


def test_the_command_tells_of_every_stage(tmp_path: Path, pictures: Path) -> None:
    words = [str(pictures), str(tmp_path / "out"), "--run_back", "False", "--clip_model", MODEL, "--device", "cpu"]
    done = CliRunner().invoke(cli, ["end2end", *words, "--num_prepro_workers", "0"])
    assert done.exit_code == 0, done.output
    for said in (
        "4 rows in",
        "4 pictures and 4 captions embedded",
        "indices in",
        f"back {tmp_path}/out/indices_paths.json",
    ):
        assert said in done.output.replace("\n", "").replace("served by: ", ""), said


def write_program(folder: Path) -> None:
    folder.mkdir()
    (folder / "x.jpg").write_bytes(jpeg_bytes(1))
    (folder / "img2dataset").write_text(PROGRAM.format(python=sys.executable, words=WORDS, jpeg=str(folder / "x.jpg")))
    (folder / "img2dataset").chmod(0o755)


def test_img2dataset_is_called_as_before_and_its_tars_are_embedded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_program(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    options = {"run_back": False, "downloader": "img2dataset", **USUAL}
    result = clip_end2end("test_1000.parquet", str(tmp_path / "out"), **options)
    said = json.loads(capfd.readouterr().out.splitlines()[0])
    assert said == {
        "--url_list": "test_1000.parquet", "--input_format": "parquet", "--url_col": "URL", "--caption_col": "TEXT",
        "--output_folder": str(tmp_path / "out/images"), "--output_format": "webdataset", "--image_size": "256",
        "--processes_count": "4", "--thread_count": "128", "--incremental_mode": "incremental",
    }  # fmt: skip
    assert (result.summary.stats.image_count, result.summary.stats.text_count) == (4, 4)
    assert "url" in pd.read_parquet(tmp_path / "out/index/metadata").columns
    (tmp_path / "bin/img2dataset").unlink()  # what is finished is not asked for again
    assert clip_end2end("test_1000.parquet", str(tmp_path / "out"), **options).summary.already_done == 1
    with pytest.raises(ConfigError, match="are of another list"):
        clip_end2end("other.parquet", str(tmp_path / "out"), **options)


def test_img2dataset_that_fails_or_is_missing_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"run_back": False, "downloader": "img2dataset", **USUAL}
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="pip install img2dataset"):
        clip_end2end("x.parquet", str(tmp_path / "out"), **options)
    write_program(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(SourceError, match="img2dataset ended with code 3"):
        clip_end2end("broken.parquet", str(tmp_path / "out"), **options)


def test_an_input_is_known_by_its_names_and_columns(tmp_path: Path, pictures: Path) -> None:
    pd.DataFrame({"jpg": [b"x"], "url": ["u"]}).to_parquet(tmp_path / "bytes.parquet")
    pd.DataFrame({"url": ["u"]}).to_parquet(tmp_path / "urls.parquet")
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/0.tar").touch()
    known = {
        str(pictures): "files", str(tmp_path / "tars"): "webdataset", "s3://bucket/{00..99}.tar": "webdataset",
        "x.zip": "archive", str(tmp_path / "bytes.parquet"): "parquet", str(tmp_path / "urls.parquet"): "urls",
        "urls.csv.gz": "urls", "list.TXT": "urls", "https://example.org/x.jsonl?sig=1": "urls",
    }  # fmt: skip
    assert {place: recognize(place) for place in known} == known
    (tmp_path / "empty").mkdir()
    for place, message in ((str(tmp_path / "empty"), "has no files"), ("x.doc", "--input_format")):
        with pytest.raises(ConfigError, match=message):
            recognize(place)


def test_what_would_fail_after_hours_is_refused_at_once(tmp_path: Path, pictures: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}.* is in use"):
            clip_end2end(str(pictures), str(tmp_path / "out"), port=port, **USUAL)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="a folder of this machine"):
        clip_end2end(str(pictures), "s3://bucket/out", **USUAL)
