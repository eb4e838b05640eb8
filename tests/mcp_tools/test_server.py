"""`clip-retrieval mcp`, asked by the mcp package's own client over stdio."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from click.testing import CliRunner
from mcp import Client, StdioServerParameters
from PIL import Image

from clip_retrieval import clip_index, clip_inference
from clip_retrieval.cli import cli
from clip_retrieval.demo.run import GALLERY

T = TypeVar("T")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give an index of the first pictures of the demo's gallery."""
    folder = tmp_path_factory.mktemp("demo")
    clip_inference(
        str(GALLERY), str(folder / "embeddings"), input_format="webdataset", clip_model="demo", enable_metadata=True,
        device="cpu", subset_size=24, num_prepro_workers=0,
    )  # fmt: skip
    clip_index(str(folder / "embeddings"), str(folder / "index"))
    return folder / "index"


def ask(index: Path, questions: Callable[[Client], Awaitable[T]]) -> T:
    """Start the command, ask it, and end it."""
    command = StdioServerParameters(
        command=sys.executable, args=["-m", "clip_retrieval", "mcp", str(index)], env=dict(os.environ)
    )

    async def run() -> T:
        async with Client(command) as client:
            return await questions(client)

    return asyncio.run(run())


def test_a_language_model_finds_looks_and_goes_on(index: Path) -> None:
    async def questions(client: Client) -> dict[str, Any]:
        tools = await client.list_tools()
        about = await client.call_tool("describe", {})
        found = await client.call_tool("search", {"query": "dog", "limit": 3})
        assert found.structured_content is not None
        row = found.structured_content["hits"][0]["id"]
        return {
            "tools": {tool.name: tool for tool in tools.tools},
            "about": about.structured_content,
            "found": found.structured_content["hits"],
            "like": await client.call_tool("more_like", {"row": row, "limit": 2, "where": "caption is not null"}),
            "picture": await client.call_tool("picture", {"row": row, "size": 100}),
            "captions": await client.call_tool("search", {"query": "dog - cat", "modality": "text", "limit": 1}),
            "wrong": [
                await client.call_tool("picture", {"row": 10**6}),
                await client.call_tool("search", {"query": "dog", "where": "nothing > 1"}),
                await client.call_tool("search", {"query": " "}),
                await client.call_tool("search", {"query": "dog", "limit": 10**6}),
            ],
        }

    said = ask(index, questions)
    assert said["tools"].keys() == {"search", "more_like", "describe", "picture"}
    assert all(tool.description for tool in said["tools"].values())
    assert said["about"]["rows"] == {"image": 24, "text": 24}
    assert said["about"]["clip_model"] == "demo"
    assert "string" in said["about"]["columns"]["caption"]
    scores = [hit["similarity"] for hit in said["found"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert "caption" in said["found"][0]["metadata"]
    assert said["captions"].structured_content["hits"][0]["metadata"]["caption"]
    alike = [hit["id"] for hit in said["like"].structured_content["hits"]]
    assert len(alike) == 2
    assert said["found"][0]["id"] not in alike
    (picture,) = said["picture"].content
    assert picture.mime_type == "image/jpeg"
    assert max(Image.open(io.BytesIO(base64.b64decode(picture.data))).size) <= 100
    assert [answer.is_error for answer in said["wrong"]] == 4 * [True]
    sentences = [answer.content[0].text for answer in said["wrong"]]
    for sentence, expected in zip(
        sentences, ("has no picture", "nothing", "empty", "less than or equal to 100"), strict=True
    ):
        assert expected in sentence
        assert "Traceback" not in sentence


def test_what_is_no_index_or_several_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "two.json").write_text('{"a": "a", "b": "b"}')
    done = CliRunner().invoke(cli, ["mcp", str(tmp_path / "two.json")])
    assert "names 2 indices; give the folder of one" in done.output
    done = CliRunner().invoke(cli, ["mcp", str(tmp_path / "nothing")])
    assert done.exit_code == 1
    assert "there is neither an index folder nor a json file" in done.output
