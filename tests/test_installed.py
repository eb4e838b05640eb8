"""The message about a missing package, before anything is done; packaging/light/tests try it for real."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from clip_retrieval.cli import cli
from clip_retrieval.errors import ConfigError, EncoderError
from clip_retrieval.filter.run import clip_filter
from clip_retrieval.installed import need, need_full
from clip_retrieval.photos.models import choose_model

MISSING = "no_such_package"
LEFT_OUT = {"torch", "torchvision", "open_clip", "autofaiss", "onnxscript", "onnx", "webdataset", "duckdb", "pandas"}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give a function that makes some distributions all that are installed."""

    def put(*names: str) -> None:
        for name in names:
            folder = tmp_path / f"{name.replace('-', '_')}-3.0.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 3.0\n")
        monkeypatch.setattr(sys, "path", [str(tmp_path)])

    return put


@pytest.fixture
def without_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Python find none of the packages that the light distribution leaves out."""
    real = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name in LEFT_OUT else real(name, package)

    monkeypatch.setattr("importlib.util.find_spec", find)


def said(action: Callable[[], None]) -> str:
    with pytest.raises((ConfigError, EncoderError)) as caught:
        action()
    return str(caught.value)


def test_the_light_distribution_says_how_to_change_to_the_other_one(install: Callable[..., None]) -> None:
    install("clip-retrieval-light")
    assert said(lambda: need_full(MISSING, "the model x", EncoderError, instead="name another")) == (
        "the model x needs no_such_package, which clip-retrieval-light leaves out: pip uninstall -y "
        "clip-retrieval-light && pip install clip-retrieval; or name another"
    )
    assert said(lambda: need(MISSING, "back", ConfigError, extra="serve")) == (
        "back needs no_such_package: pip install 'clip-retrieval-light[serve]'"
    )


@pytest.mark.parametrize("names", [(), ("clip-retrieval",), ("clip-retrieval", "clip-retrieval-light")])
def test_any_other_installation_is_told_to_install_what_is_missing(
    install: Callable[..., None], names: tuple[str, ...]
) -> None:
    install(*names)
    assert said(lambda: need_full(MISSING, "the model x", EncoderError)) == (
        "the model x needs no_such_package, which is not installed: pip install clip-retrieval"
    )
    assert said(lambda: need(MISSING, "back", ConfigError, extra="serve")) == (
        "back needs no_such_package: pip install 'clip-retrieval[serve]'"
    )


@pytest.mark.usefixtures("without_heavy")
@pytest.mark.parametrize(
    "command",
    [
        ["inference", "{in}", "{out}"],
        ["inference", "{in}", "{out}", "--clip_model", "hf_clip:org/name", "--dry_run"],
        ["end2end", "{in}", "{out}", "--clip_model", "open_clip:ViT-B-32/x", "--run_back", "False"],
        ["search", "dog", "{in}", "--clip_model", "ViT-B/32"],
        ["search", "--use_model", "ViT-L/14"],
        ["similarity", "{in}", "--text", "dog"],
        ["zsl", "{in}", "--label", "dog"],
        ["extract", "{out}", "{in}", "-m", "random:ViT-B-32"],
        ["benchmark", "{in}", "-m", "demo", "-m", "ViT-B/32"],
        ["models", "info", "ViT-B/32"],
        ["models", "list"],
        ["convert", "demo", "{out}", "--to", "onnx"],
        ["quantize", "demo", "{out}", "--type", "int8"],
        ["filter", "dog", "{out}", "{index}"],
        ["filter", "dog", "{out}", "{index}", "--where", "caption = 'dog'"],
    ],
    ids=" ".join,
)
def test_what_needs_a_missing_package_ends_with_one_sentence_and_writes_nothing(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_pictures: Any, write_index: Any
) -> None:
    cache, manifest = tmp_path / "cache", {"clip_model": "ViT-B/32", "fingerprint": "x", "dimension": 16}
    monkeypatch.setenv("CLIP_RETRIEVAL_CACHE", str(cache))
    rows = np.eye(2, 16, dtype=np.float32)
    places = {
        "in": write_pictures(tmp_path / "in", 2),
        "out": tmp_path / "out",
        "index": write_index(tmp_path / "ix", pd.DataFrame({"caption": ["cat", "dog"]}), rows=rows, manifest=manifest),
    }
    done = CliRunner().invoke(cli, [word.format(**places) for word in command])
    assert done.exit_code == 1
    error = done.output.splitlines()[-1]
    assert error.startswith("Error: ")
    assert "pip install" in error
    assert not places["out"].exists()
    assert not cache.exists()


@pytest.mark.usefixtures("without_heavy")
def test_a_new_photo_folder_gets_the_demo_model_where_torch_is_missing() -> None:
    choice = choose_model(None)
    assert choice.clip_model == "demo"
    assert "onnx:FOLDER" in choice.reason


@pytest.mark.usefixtures("without_heavy")
def test_without_pandas_clip_filter_says_so_before_it_writes(tmp_path: Path, write_index: Any) -> None:
    index = write_index(tmp_path / "ix", pd.DataFrame({"caption": ["cat", "dog"]}))
    with pytest.raises(ConfigError, match="pip install pandas"):
        clip_filter("dog", str(tmp_path / "out"), str(index))
    assert not (tmp_path / "out").exists()


def test_every_command_is_imported_without_what_the_light_distribution_leaves_out() -> None:
    modules = ["server.run", "server.front", "filter.run", "photos.ask", "index.build", "inference.run"]
    modules += ["curate.dedup", "curate.label", "curate.select", "curate.report", "end2end.run", "map.run"]
    modules += ["tools.similarity", "tools.zero_shot", "tools.extract", "tools.benchmark"]
    code = f"import sys; sys.modules.update(dict.fromkeys({sorted(LEFT_OUT)}))\n"
    code += "\n".join(f"import clip_retrieval.{module}" for module in modules)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
