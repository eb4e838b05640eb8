from __future__ import annotations

from pathlib import Path

import pytest

from clip_retrieval.cache_home import cache_home, hub_repository, openai_folders

VARIABLES = ("CLIP_RETRIEVAL_CACHE", "XDG_CACHE_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME")


@pytest.mark.parametrize(
    ("given", "own", "hub"),
    [
        ({}, "/home/me/.cache/clip-retrieval", "/home/me/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/clip-retrieval", "/x/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/x", "HF_HOME": "~/hf"}, "/x/clip-retrieval", "/home/me/hf/hub"),
        ({"HF_HOME": "/hf", "HUGGINGFACE_HUB_CACHE": "/old"}, "/home/me/.cache/clip-retrieval", "/old"),
        ({"HUGGINGFACE_HUB_CACHE": "/old", "HF_HUB_CACHE": "/new"}, "/home/me/.cache/clip-retrieval", "/new"),
        ({"CLIP_RETRIEVAL_CACHE": "~/own", "XDG_CACHE_HOME": "/x"}, "/home/me/own", "/x/huggingface/hub"),
        (
            {"CLIP_RETRIEVAL_CACHE": "", "HF_HOME": ""},
            "/home/me/.cache/clip-retrieval",
            "/home/me/.cache/huggingface/hub",
        ),
    ],
)
def test_caches_lie_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], own: str, hub: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert (cache_home(), hub_repository("org/name")) == (Path(own), Path(hub) / "models--org--name")


def test_a_named_cache_goes_before_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("HF_HUB_CACHE", "/hub")
    monkeypatch.setenv("CLIP_DIR", "~/clip")
    assert hub_repository("org/name", "~/mine") == Path("/home/me/mine/models--org--name")
    assert openai_folders("~/mine") == [Path("/home/me") / name for name in ("mine", "clip", ".cache/clip")]
    assert openai_folders() == [Path("/home/me/clip"), Path("/home/me/.cache/clip")]
