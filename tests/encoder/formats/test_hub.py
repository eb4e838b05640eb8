"""Names on a hub: resolved in a cache of the hub's own layout, and fetched from a hub of one folder on this machine."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.export.config import ConvertConfig
from clip_retrieval.encoder.export.convert import run_convert
from clip_retrieval.encoder.formats.huggingface_writer import write_huggingface
from clip_retrieval.encoder.formats.recognize import read_checkpoint, recognize
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.errors import EncoderError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 1, "width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers saves it, with other files that repositories have."""
    place = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    numbers = {"input_resolution": 64, "context_length": 77, "vocab_size": 49408}
    state = open_clip.CLIP(**CONFIG).state_dict() | {name: torch.tensor(value) for name, value in numbers.items()}
    torch.save(state, place / "model.pt")
    write_huggingface(read_checkpoint(place / "model.pt"), place / "repository")
    (place / "repository" / "tf_model.h5").write_bytes(b"not wanted")
    (place / "repository" / "pytorch_model.bin").write_bytes(b"not wanted where there is safetensors")
    return place / "repository"


def fill_cache(cache: Path, folder: Path, name: str = "org/name") -> Path:
    """Lay a folder out as the hub's cache does, a snapshot of links to blobs; return the snapshot."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    for part in (repository / "blobs", repository / "refs", snapshot):
        part.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for file in folder.iterdir():
        digest = hashlib.sha256(file.name.encode()).hexdigest()
        shutil.copy(file, repository / "blobs" / digest)
        (snapshot / file.name).symlink_to(Path("../../blobs") / digest)
    return snapshot


def refusal(model: str, cache: Path) -> str:
    with pytest.raises(EncoderError) as caught:
        load_encoder(EncoderConfig(clip_model=model, clip_cache_path=str(cache)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
def test_a_name_in_the_cache_is_the_model_of_its_folder(tmp_path: Path, folder: Path, revision: str) -> None:
    fill_cache(tmp_path, folder)
    named = load_encoder(EncoderConfig(clip_model=f"hf_clip:org/name{revision}", clip_cache_path=str(tmp_path)))
    assert named.info.fingerprint == load_encoder(f"hf_clip:{folder}").info.fingerprint
    assert named.info.preprocess.size == 64
    assert named.info.uri == f"hf_clip:org/name{revision}"


def test_files_of_open_clip_beside_those_of_transformers_are_not_looked_at(tmp_path: Path, folder: Path) -> None:
    (fill_cache(tmp_path, folder) / "open_clip_config.json").write_text("{}")
    assert load_encoder(EncoderConfig(clip_model="hf_clip:org/name", clip_cache_path=str(tmp_path)))


def test_a_name_can_be_converted(tmp_path: Path, folder: Path) -> None:
    fill_cache(tmp_path / "cache", folder)
    out = tmp_path / "out"
    run_convert(
        ConvertConfig(source="hf_clip:org/name", out=str(out), to="open_clip", clip_cache_path=str(tmp_path / "cache"))
    )
    assert load_encoder(str(out)).info.fingerprint == load_encoder(str(folder)).info.fingerprint


def test_a_name_is_recognized_without_looking_into_it() -> None:
    assert recognize(Path("hf-hub:org/name")) == "huggingface"


def test_a_name_that_is_not_in_the_cache_is_refused_without_network(tmp_path: Path) -> None:
    message = refusal("hf_clip:org/name", tmp_path)
    assert "org/name is neither a folder here, nor whole in the hub's cache, and could not be fetched" in message
    assert "offline mode is enabled" in message
    assert "--clip_cache_path" in message


def test_a_cache_without_the_weights_is_refused(tmp_path: Path, folder: Path) -> None:
    snapshot = fill_cache(tmp_path, folder)
    for name in ("model.safetensors", "pytorch_model.bin"):
        (snapshot / name).unlink()
    assert "the weights of org/name (model.safetensors or pytorch_model.bin) are neither in" in refusal(
        "hf_clip:org/name", tmp_path
    )


def test_another_family_is_refused_before_its_weights_are_wanted(tmp_path: Path, folder: Path) -> None:
    snapshot = fill_cache(tmp_path, folder)
    for name in ("model.safetensors", "pytorch_model.bin", "config.json"):
        (snapshot / name).unlink()
    assert "it has no config.json" in refusal("hf_clip:org/name", tmp_path)
    (snapshot / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    assert "open_clip:ViT-B-16-SigLIP/webli" in refusal("hf_clip:org/name", tmp_path)


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of a hub that fetching needs: org/name is a folder, the other names are refused as by the hub."""

    folder: Path
    served: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/org/name/revision/main"):
            self.answer(json.dumps({"id": "org/name", "sha": COMMIT, "siblings": []}).encode())
        elif path.startswith(f"/api/models/org/name/tree/{COMMIT}"):
            files = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in self.files()]
            self.answer(json.dumps(files).encode())
        elif path.startswith(f"/org/name/resolve/{COMMIT}/"):
            self.served.append(path.rpartition("/")[2])
            self.answer((self.folder / self.served[-1]).read_bytes())
        elif path.startswith("/api/models/org/name/revision/"):
            self.refuse(404, "RevisionNotFound")
        elif path.startswith("/api/models/org/gated/"):
            self.refuse(403, "GatedRepo")
        else:
            self.refuse(404, "RepoNotFound")

    def files(self) -> list[Path]:
        return sorted(self.folder.iterdir())

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@pytest.fixture
def hub(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve the folder as org/name; give the address, and the names of the requested files."""
    handler: Any = type("FolderHub", (Hub,), {"folder": folder, "served": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler.served
    server.shutdown()
    server.server_close()


FETCH = """
import sys
from clip_retrieval.encoder.formats.hub import fetch_model
from clip_retrieval.errors import EncoderError
try:
    print(fetch_model(sys.argv[1], sys.argv[2]))
except EncoderError as error:
    print("refused:", error)
"""


def fetch(address: str, name: str, cache: Path) -> str:
    """Fetch in a separate process: huggingface_hub reads its settings only once."""
    settings = {
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        "HF_HOME": str(cache),
    }
    command = [sys.executable, "-c", FETCH, name, str(cache)]
    done = subprocess.run(
        command, env={**os.environ, **settings}, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def test_a_model_is_fetched_without_what_is_not_read(tmp_path: Path, folder: Path, hub: tuple[str, list[str]]) -> None:
    address, served = hub
    fetched = Path(fetch(address, "org/name", tmp_path))
    assert {file.name for file in fetched.iterdir()} == {
        file.name for file in folder.iterdir() if file.suffix not in (".h5", ".bin")
    }
    assert not {"tf_model.h5", "pytorch_model.bin"} & set(served)
    named = load_encoder(EncoderConfig(clip_model="hf_clip:org/name", clip_cache_path=str(tmp_path)))
    assert named.info.fingerprint == load_encoder(f"hf_clip:{folder}").info.fingerprint


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("org/none", "there is neither a folder org/none here nor such a model on the hub"),
        ("org/gated", "ask for access at https://huggingface.co/org/gated"),
        ("org/name@v9", "org/name has no revision v9 on the hub"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    tmp_path: Path, hub: tuple[str, list[str]], name: str, words: str
) -> None:
    message = fetch(hub[0], name, tmp_path)
    assert message.startswith("refused:")
    assert words in message
    assert "\n" not in message


def test_a_hub_that_does_not_answer_is_one_sentence(tmp_path: Path) -> None:
    message = fetch("http://127.0.0.1:9", "org/name", tmp_path)
    assert "org/name is neither a folder here, nor whole in the hub's cache, and could not be fetched (" in message
    assert "\n" not in message
