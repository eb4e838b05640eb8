"""clip-retrieval-light as people get it: built from this checkout and installed into a fresh environment.

`make test-light` runs these, `make test` does not: they need the package registry, and minutes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import time
import urllib.request
import venv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

LIGHT = Path(__file__).parents[1]
GALLERY = LIGHT.parents[1] / "clip_retrieval/demo/gallery"
LEFT_OUT = ("torch", "torchvision", "open_clip", "autofaiss", "onnxscript", "onnx", "webdataset")
PATIENCE = 1200  # seconds: only a hang takes longer
ADVICE = "pip uninstall -y clip-retrieval-light && pip install clip-retrieval"


@dataclass(frozen=True)
class Environment:
    """A virtual environment, with a home and a working folder of its own."""

    place: Path

    @property
    def variables(self) -> dict[str, str]:
        own = {"HOME": str(self.place / "home"), "CLIP_RETRIEVAL_CACHE": str(self.place / "cache"), "NO_COLOR": "1"}
        return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | own

    def python(
        self, *words: object, check: bool = True, more: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        command, variables = [str(self.place / "venv/bin/python"), *map(str, words)], self.variables | dict(more or {})
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=self.place, env=variables, timeout=PATIENCE, check=False
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def run(self, *words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command `clip-retrieval`."""
        return self.python(self.place / "venv/bin/clip-retrieval", *words, check=check)

    def install(self, *requirements: object) -> None:
        home = {"HOME": os.environ["HOME"]} if "HOME" in os.environ else {}  # which may hold pip's settings
        done = self.python("-m", "pip", "install", "--quiet", *requirements, check=False, more=home)
        if done.returncode:
            pytest.fail(
                f"pip could not install {requirements}: these tests need a package registry that can be reached.\n"
                f"pip said: {done.stderr[-3000:]}",
                pytrace=False,
            )


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Give an environment with nothing but the light distribution and its server."""
    environment = Environment(tmp_path_factory.mktemp("light"))
    venv.create(environment.place / "venv", with_pip=True)
    (environment.place / "home").mkdir()
    environment.install(f"{LIGHT}[serve]")
    return environment


@pytest.fixture(scope="module")
def demo(light: Environment) -> Path:
    """Give the folder that `demo` wrote: embeddings, an index, and the hits of three queries."""
    return run_demo(light, "demo")


def run_demo(environment: Environment, name: str) -> Path:
    done = environment.run("demo", name, "--json")
    found = json.loads(done.stdout)
    assert found["inference"]["sample_count"] == 1697
    assert [hits["results"][0]["caption"] for hits in found["queries"]][1:] == ["red heart", "dog"]
    return environment.place / name


@pytest.fixture(scope="module")
def pictures(light: Environment) -> Path:
    with tarfile.open(GALLERY / "00000.tar") as tar:
        members = [member for member in tar.getmembers() if member.name < "00060"]
        tar.extractall(light.place / "pictures", members, filter="data")
    return light.place / "pictures"


def test_nothing_large_is_installed_and_the_tree_stays_as_it_is(light: Environment) -> None:
    code = f"import importlib.util as u; print([n for n in {LEFT_OUT} if u.find_spec(n)])"
    assert light.python("-c", code).stdout.strip() == "[]"
    assert not (LIGHT / "build").exists()
    assert not list(LIGHT.glob("*.egg-info"))
    packages = light.place / "venv/lib"
    size = sum(path.lstat().st_blocks * 512 for path in packages.rglob("*"))
    print(f"{size / 2**20:.0f} MiB installed, pip and the server included")  # noqa: T201 -- make test-light shows it


def test_the_demo_finds_what_it_is_asked_for(demo: Path) -> None:
    assert (demo / "dog/index.html").exists()


def test_a_folder_of_pictures_is_searched_with_the_demo_model(light: Environment, pictures: Path) -> None:
    done = light.run("search", "dog face", pictures, "--num_results", 1, "--json")
    assert json.loads(done.stdout)["results"][0]["path"].endswith(".jpg")
    assert "onnx:FOLDER" in done.stderr


@pytest.mark.parametrize("form", ["files", "webdataset", "parquet"])
def test_pictures_of_any_format_become_an_index_that_filter_asks(light: Environment, pictures: Path, form: str) -> None:
    sources = {"files": pictures, "webdataset": GALLERY / "00000.tar", "parquet": light.place / "pictures.parquet"}
    code = (
        "import sys, pathlib, pyarrow, pyarrow.parquet\n"
        "data = [path.read_bytes() for path in sorted(pathlib.Path(sys.argv[1]).glob('*.jpg'))]\n"
        "pyarrow.parquet.write_table(pyarrow.table({'image': data}), sys.argv[2])"
    )
    light.python("-c", code, pictures, sources["parquet"])
    light.run("inference", sources[form], form, "--input_format", form, "--clip_model", "demo", "--subset_size", 50)
    light.run("index", form, f"{form}-index")
    light.run("filter", "dog", f"{form}-hits", f"{form}-index", "--num_results", 3, "--write", "webdataset,csv")
    with tarfile.open(light.place / f"{form}-hits/webdataset/00000.tar") as tar:
        assert len([name for name in tar.getnames() if name.endswith(".jpg")]) == 3


def test_the_small_commands_work(light: Environment, pictures: Path) -> None:
    picture = next(pictures.glob("*.jpg"))
    light.run("similarity", picture, "--text", "dog", "-m", "demo")
    light.run("zsl", pictures, "--label", "dog", "--label", "heart", "-m", "demo")
    light.run("extract", "extracted", pictures, "--text", "dog", "-m", "demo")
    assert (light.place / "extracted/image_embeddings.npy").exists()


@pytest.fixture
def server(light: Environment, demo: Path) -> Iterator[str]:
    """Give the address of a server of the demo's index."""
    command = [str(light.place / "venv/bin/clip-retrieval"), "back", str(demo / "index"), "--port", "0"]
    with (
        (light.place / "server.log").open("w") as log,
        subprocess.Popen(command, cwd=light.place, env=light.variables, stderr=log) as process,
    ):
        try:
            yield wait_for(process, light.place / "server.log")
        finally:
            process.terminate()


def wait_for(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return the address that a server tells."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        if found := re.search(r"(http://\S+) answers", log.read_text()):
            return found[1]
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def test_the_server_answers(server: str) -> None:
    request = urllib.request.Request(f"{server}/v1/search", json.dumps({"queries": ["dog"], "limit": 1}).encode())
    answer: dict[str, Any] = json.load(urllib.request.urlopen(request, timeout=PATIENCE))
    assert answer["results"][0]["hits"][0]["metadata"]["caption"] == "dog"
    assert urllib.request.urlopen(f"{server}/readyz", timeout=PATIENCE).status == 200


@pytest.mark.parametrize(
    "words",
    [
        ["inference", "pictures", "none"],
        ["search", "dog", "pictures", "--clip_model", "ViT-L/14", "--reembed"],
        ["convert", "demo", "none", "--to", "onnx"],
        ["quantize", "demo", "none", "--type", "int8"],
        ["models", "list"],
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("pictures")
def test_what_needs_torch_says_what_to_install_instead(light: Environment, words: list[str]) -> None:
    done = light.run(*words, check=False)
    assert done.returncode == 1
    assert re.fullmatch(rf"Error: .+ needs .+, which clip-retrieval-light leaves out: {ADVICE}.*\n", done.stderr)
    assert not (light.place / "none").exists()


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="numpy 1 has no wheels for this Python")
def test_the_demo_runs_on_numpy_1_too(light: Environment) -> None:
    light.install("numpy<2")
    version = light.python("-c", "import numpy; print(numpy.__version__)").stdout
    assert version.startswith("1.")
    run_demo(light, "demo-numpy-1")
