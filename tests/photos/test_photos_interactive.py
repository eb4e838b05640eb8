"""`search --interactive`: each line refines the query before it, or is a new one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clip_retrieval.photos import refresh
from clip_retrieval.photos.ask import PhotoAnswer, open_photos
from clip_retrieval.photos.config import read_search_config
from clip_retrieval.photos.interactive import HELP, Conversation


class Shown:
    """What a conversation showed and said."""

    def __init__(self) -> None:
        self.answers: list[PhotoAnswer] = []
        self.said: list[str] = []

    @property
    def names(self) -> list[str]:
        return [Path(path).name for path in self.answers[-1].paths()]


@pytest.fixture
def talk(
    tmp_path: Path, make_jpeg: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> tuple[Conversation, Shown]:
    monkeypatch.setattr(refresh, "FEW_READERS", 0)
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(make_jpeg(number))
    config = read_search_config({"interactive": True, "clip_model": "hash:16?size=32"}, (str(tmp_path),))
    shown = Shown()
    return Conversation(open_photos(config), config.selection, shown.answers.append, shown.said.append), shown


def test_lines_ask_refine_and_end(talk: tuple[Conversation, Shown], tmp_path: Path) -> None:
    conversation, shown = talk
    assert conversation.take(str(tmp_path / "2.jpg"))
    assert shown.names[0] == "2.jpg"
    second = shown.names[1]
    assert conversation.take("more like 2")
    assert second not in shown.names
    assert shown.answers[-1].answered.query.kind == "row"
    assert conversation.take("where image_path like '%/0.jpg'")
    assert set(shown.names) <= {"0.jpg"}
    assert conversation.take("where")
    assert len(shown.names) == 3
    assert conversation.take("show 1")
    assert len(shown.names) == 1
    assert conversation.take("a dog")
    assert conversation.take("minus a cat")
    assert shown.answers[-1].answered.query.text == "a dog - a cat"
    assert not conversation.take("quit")


def test_a_mistake_is_a_sentence_and_the_conversation_goes_on(talk: tuple[Conversation, Shown]) -> None:
    conversation, shown = talk
    assert conversation.take("more like 1")
    assert "there is no hit 1" in shown.said[-1]
    assert conversation.take("a dog")
    assert conversation.take("where widht > 3")
    assert "widht" in shown.said[-1]
    assert conversation.take("where image_path like 'x")
    assert conversation.selection.where is None
    assert conversation.take("help")
    assert shown.said[-1] == HELP
    assert conversation.take("")
    assert len(shown.answers) == 1
