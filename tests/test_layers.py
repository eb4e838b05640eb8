"""Imports point one way, and nothing heavy is loaded before it is needed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import clip_retrieval

PACKAGE = Path(clip_retrieval.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
LAYERS = (
    {
        *("options", "option_values", "option_flags", "errors", "storage", "layout", "blobs", "resources"),
        *("subprocesses", "safe_fetch", "connections", "interrupts", "revision", "sizes"),
    },
    {"encoder", "metadata"},
    {"inference", "index", "tools"},
    {"filter", "clip"},
    {"demo"},
    {"cli", "commands", "__main__", "__init__"},
)
LAYER_OF = {part: layer for layer, parts in enumerate(LAYERS) for part in parts}
ENDS = {0, len(LAYERS) - 1}  # the parts of the lowest layer build on each other, those of the highest are the entry
HEAVY = {"torch", "torchvision", "open_clip", "faiss", "autofaiss", "pandas", "pyarrow", "transformers", "PIL"}
LIGHTER = HEAVY - {"pyarrow", "PIL"}
ENCODER_ONLY = {"torch", "torchvision", "open_clip", "transformers", "onnxruntime", "openvino"}


def part_of(path: Path) -> str:
    """Return the first name below the package: a folder, or a module without its suffix."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_names(path: Path) -> Iterator[str]:
    """Yield the dotted names that a module imports, at its top, inside functions and for type checking alike."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_parts(path: Path) -> set[str]:
    own = [name.split(".") for name in imported_names(path) if name.split(".")[0] == "clip_retrieval"]
    return {name[1] for name in own if len(name) > 1 and name[1] != "__version__"}


def loaded_by(code: str) -> set[str]:
    """Return the top-level modules that a fresh Python has loaded after running `code`."""
    probe = f"import json, sys\n{code}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_every_part_has_a_layer() -> None:
    assert {part_of(path) for path in MODULES} <= set(LAYER_OF)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_its_own_part_or_a_lower_layer(path: Path) -> None:
    part = part_of(path)
    others = imported_parts(path) - {part}
    upwards = {
        other
        for other in others
        if LAYER_OF[other] > LAYER_OF[part] or (LAYER_OF[other] == LAYER_OF[part] and LAYER_OF[part] not in ENDS)
    }
    assert not upwards


def test_index_never_imports_the_encoder() -> None:
    imported = {name for path in MODULES if part_of(path) == "index" for name in imported_parts(path)}
    assert "encoder" not in imported


def test_model_libraries_are_imported_only_inside_the_encoder() -> None:
    importers = {
        part_of(path) for path in MODULES for name in imported_names(path) if name.split(".")[0] in ENCODER_ONLY
    }
    assert importers == {"encoder"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_by("import clip_retrieval") & (HEAVY | {"numpy", "click"})


def test_importing_the_command_line_loads_no_model_index_or_table_library() -> None:
    assert not loaded_by("import clip_retrieval.cli") & LIGHTER


HELPED = [
    [], ["inference"], ["inference.worker"], ["index"], ["index", "score"], ["filter"], ["demo"],
    ["parquet_to_arrow"],
    ["similarity"], ["zsl"], ["extract"], ["benchmark"], ["models"], ["models", "list"], ["models", "info"],
]  # fmt: skip


@pytest.mark.parametrize("command", HELPED, ids=" ".join)
def test_help_loads_no_model_index_or_table_library(command: list[str]) -> None:
    code = (
        "import contextlib, os\nfrom clip_retrieval.cli import cli\n"
        f"with open(os.devnull, 'w') as void, contextlib.redirect_stdout(void):\n"
        f"    cli({[*command, '--help']!r}, standalone_mode=False)"
    )
    assert not loaded_by(code) & LIGHTER


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clip_retrieval", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "inference.worker" in done.stdout


def test_a_name_that_the_package_has_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="clip_back_to_the_future"):
        clip_retrieval.clip_back_to_the_future  # noqa: B018


def test_only_the_list_of_models_needs_open_clip() -> None:
    modules = "benchmark_report, extract, models, report, similarity, zero_shot"
    assert not loaded_by(f"import clip_retrieval.clip\nfrom clip_retrieval.tools import {modules}") & LIGHTER
