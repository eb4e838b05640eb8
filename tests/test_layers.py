"""Imports point one way, and nothing heavy is loaded before it is needed."""

from __future__ import annotations

import ast
import functools
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
    {"errors", "words", "cache_home", "progress", "version", "option_values", "compression", "scratch", "paths"},
    {"git_lfs", "installed", "web_pages"},
    {"other_files", "options", "blobs", "process", "json_files", "local_files", "client"},
    {"option_flags", "storage", "network", "clip_client", "clusters", "media"},
    {"layout"},
    {"checksums"},
    {"encoder", "metadata"},
    {"revision", "embeddings", "sources"},
    {"search"},
    {"tools", "inference", "index"},
    {"query", "faces"},
    {"filter", "clip", "server"},
    {"demo", "photos", "clip_back", "end2end", "mcp_tools", "curate", "map", "export"},
    {"commands"},
    {"cli"},
    {"__init__", "__main__"},
)
LAYER_OF = {part: layer for layer, parts in enumerate(LAYERS) for part in parts}
HEAVY = {"torch", "torchvision", "open_clip", "faiss", "autofaiss", "pandas", "pyarrow", "transformers", "PIL"}
LIGHTER = HEAVY - {"pyarrow", "PIL"}
ENCODER_ONLY = {"torch", "torchvision", "open_clip", "transformers", "onnxruntime", "openvino"}


def part_of(path: Path) -> str:
    """Return the first name below the package: a folder, or a module without its suffix."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def syntax_of(path: Path) -> tuple[ast.AST, ...]:
    """Return the nodes of a module that these tests look at."""
    kinds = (ast.Import, ast.ImportFrom, ast.Constant, ast.Call)
    return tuple(node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, kinds))


def imported_names(path: Path) -> Iterator[str]:
    """Yield the dotted names that a module imports, at its top, inside functions and for type checking alike."""
    for node in syntax_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_parts(path: Path) -> set[str]:
    own = [name.split(".") for name in imported_names(path) if name.split(".")[0] == "clip_retrieval"]
    return {name[1] for name in own if len(name) > 1}


def loaded_by(code: str) -> set[str]:
    """Return the top-level modules that a fresh Python has loaded after running `code`."""
    probe = f"import json, sys\n{code}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_every_part_has_a_layer() -> None:
    assert {part_of(path) for path in MODULES} <= set(LAYER_OF)


def test_a_module_imports_only_its_own_part_or_a_lower_layer() -> None:
    wrong = {}
    for path in MODULES:
        part = part_of(path)
        others = imported_parts(path) - {part}
        if too_high := {other for other in others if LAYER_OF[other] >= LAYER_OF[part]}:
            wrong[module_name(path)] = too_high
    assert not wrong


def test_index_never_imports_the_encoder() -> None:
    imported = {name for path in MODULES if part_of(path) == "index" for name in imported_parts(path)}
    assert "encoder" not in imported


def test_model_libraries_are_imported_only_inside_the_encoder() -> None:
    importers = {
        part_of(path) for path in MODULES for name in imported_names(path) if name.split(".")[0] in ENCODER_ONLY
    }
    assert importers == {"encoder"}


def test_no_file_is_long() -> None:
    lengths = {module_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > 300} == {}


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_by("import clip_retrieval") & (HEAVY | {"numpy", "click"})


def test_the_client_of_a_server_loads_neither_numpy_nor_a_model_library() -> None:
    importing = "from clip_retrieval.clip_client import ClipClient"
    asking = "try:\n    ClipClient('http://127.0.0.1:1').names()\nexcept Exception as error:\n    print(error)"
    assert not loaded_by(importing) & (HEAVY | {"numpy", "click", "httpx"})
    assert not loaded_by(f"{importing}\n{asking}") & (HEAVY | {"numpy"})


def test_importing_the_command_line_loads_no_model_index_or_table_library() -> None:
    assert not loaded_by("import clip_retrieval.cli") & LIGHTER


def test_a_query_loads_neither_what_limits_threads_nor_what_writes_csv() -> None:
    code = "import clip_retrieval.filter.export, clip_retrieval.search.index\nassert 'pyarrow.csv' not in sys.modules"
    assert not loaded_by(f"{code}\nassert 'pyarrow.parquet' not in sys.modules") & {"threadpoolctl", "ssl"}


HELPED = [
    [], ["inference"], ["inference.worker"], ["index"], ["index", "score"], ["filter"], ["search"], ["demo"],
    ["parquet_to_arrow"], ["back"], ["end2end"], ["mcp"], ["map"], ["dedup"], ["label"], ["select"], ["report"],
    ["export"], ["similarity"], ["zsl"], ["extract"], ["benchmark"], ["models"], ["models", "list"], ["models", "info"],
]  # fmt: skip


def test_help_loads_no_model_index_or_table_library() -> None:
    """One process asks for the help of one command after the other, and says what each has loaded first."""
    code = (
        "import contextlib, io, json, sys\nfrom clip_retrieval.cli import cli\nloaded = {}\n"
        f"unwanted = {LIGHTER | {'numpy'}!r}\n"
        f"for command in {HELPED!r}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as said:\n"
        "        cli([*command, '--help'], standalone_mode=False)\n"
        "    loaded[' '.join(command)] = sorted(unwanted & set(sys.modules))\n"
        "    unwanted -= set(sys.modules)\n"
        "    assert 'Usage: ' in said.getvalue()\n"
        "print(json.dumps(loaded))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {" ".join(command): [] for command in HELPED}


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
    modules = "benchmark_report, extract, models, similarity, zero_shot"
    reports = "from clip_retrieval.commands.reports import models, tools"
    assert not loaded_by(f"import clip_retrieval.clip\nfrom clip_retrieval.tools import {modules}\n{reports}") & LIGHTER


def imported_modules(path: Path) -> set[str]:
    """Return the modules of the package that a module imports, at any place in it."""
    return {name if name in NAMES else name.rpartition(".")[0] for name in imported_names(path)} & set(NAMES)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


NAMES = {module_name(path): path for path in MODULES}


def find_circle(imports: dict[str, set[str]]) -> list[str]:
    """Return modules that import each other in a circle; none if there is no circle."""
    left = {name: set(others) - {name} for name, others in imports.items()}
    while ends := [name for name, others in left.items() if not others & set(left)]:
        for name in ends:
            del left[name]
    return sorted(left)


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert not find_circle({name: imported_modules(path) for name, path in NAMES.items()})


def test_a_circle_is_found_wherever_its_imports_stand() -> None:
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == ["a", "b", "c", "d"]


FOLDER_NAMES = ("metadata/", "failures/", "ledger/", "stats/", "img_emb/", "text_emb/", "img_emb_", "text_emb_")
FILE_NAMES = {"manifest.json", "metadata.arrow", ".index", "img_emb", "text_emb"}
OWN_NAMES = {"layout", "encoder"}  # models have folders of their own
LISTINGS = {"names", "sizes"}  # methods of a folder that take a sub-folder


def is_name_of_ours(text: str) -> bool:
    return text in FILE_NAMES or (text.startswith(FOLDER_NAMES) and " " not in text)


def names_of_our_files(path: Path) -> Iterator[str]:
    """Yield the literals of a module that name a file or folder which we write, messages left out."""
    for node in syntax_of(path):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and is_name_of_ours(node.value):
            yield node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LISTINGS:
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and first.value:
                yield str(first.value)


def test_names_of_files_in_our_folders_stand_in_layout_alone() -> None:
    named = {module_name(path): [*names_of_our_files(path)] for path in MODULES if part_of(path) not in OWN_NAMES}
    assert not {name: found for name, found in named.items() if found}


def test_a_name_of_ours_is_found_in_calls_and_paths(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text('a = f"metadata/{b}"\nfolder.names("stats", ".json")\nc = "manifest.json is missing"\n')
    assert [*names_of_our_files(module)] == ["stats", "metadata/"]


def test_a_command_imports_no_other_command() -> None:
    code = (
        "import contextlib, os, sys\nfrom clip_retrieval.cli import cli\n"
        "with open(os.devnull, 'w') as void, contextlib.redirect_stdout(void):\n"
        "    cli(['filter', '--help'], standalone_mode=False)\n"
        "sys.modules = {name.replace('clip_retrieval.commands.', 'command-'): None for name in sys.modules}"
    )
    assert {name for name in loaded_by(code) if name.startswith("command-")} == {"command-filter"}
