"""Line by line: model and index stay loaded, and each line refines the previous query, or is a new one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from clip_retrieval.errors import ClipRetrievalError, QueryError
from clip_retrieval.photos.ask import PhotoAnswer, PhotoFolder
from clip_retrieval.query.config import SelectionConfig
from clip_retrieval.query.terms import Words, collect_words, unquote_words

PROMPT = "search> "
KEPT_LINES = 1000
HELP = """a dog on the beach        a text, the path of a picture, or a sum such as beach + 0.5*photo.jpg - people
minus people              subtract something from the previous query
more like 3               pictures like the third hit
where image_path like '%2024%'
                          search only rows that meet a condition over the columns; where alone removes it
show 50                   number of hits
help, quit"""


@dataclass
class Conversation:
    """The last query, and how hits are chosen."""

    photos: PhotoFolder
    selection: SelectionConfig
    show: Callable[[PhotoAnswer], None]
    say: Callable[[str], None]
    words: list[Words] = field(default_factory=list)
    hits: list[int] = field(default_factory=list)  # ids of the last shown rows

    def take(self, line: str) -> bool:
        """Do what a line says; return False if it ends the conversation."""
        command, _, rest = line.strip().partition(" ")
        if command in ("quit", "exit") and not rest:
            return False
        try:
            self.follow(command, rest.strip(), line.strip())
        except ClipRetrievalError as error:
            self.say(str(error))
        return True

    def follow(self, command: str, rest: str, line: str) -> None:
        if not line:
            return
        if command == "help" and not rest:
            self.say(HELP)
        elif command == "where":
            self.ask_with(replace(self.selection, where=rest or None))
        elif command == "show" and rest.isdigit():
            self.ask_with(replace(self.selection, num_results=int(rest)))
        elif line.startswith("more like ") and rest.removeprefix("like ").isdigit():
            self.ask(collect_words((), like=[self.hit(int(rest.removeprefix("like ")))]))
        elif command == "minus" and self.words:
            self.ask([*self.words, Words(*unquote_words(rest, -1.0))])
        else:
            self.ask(collect_words([line]))

    def hit(self, rank: int) -> int:
        """Return the row of a shown hit. Raises QueryError if there was no hit of this rank."""
        if not 1 <= rank <= len(self.hits):
            raise QueryError(f"there is no hit {rank}; the last answer had {len(self.hits)}")
        return self.hits[rank - 1]

    def ask_with(self, selection: SelectionConfig) -> None:
        """Ask again with another selection, which is kept only if it can be answered."""
        if self.words:
            self.ask(self.words, selection)
        else:
            self.say("noted for the next queries")
        self.selection = selection

    def ask(self, words: list[Words], selection: SelectionConfig | None = None) -> None:
        answered = self.photos.ask(words, selection or self.selection)
        self.words, self.hits = words, answered.table["id"].to_pylist()
        self.show(answered)


def converse(conversation: Conversation) -> None:
    """Read lines until there are no more, or one of them ends it."""
    with history(conversation.photos.kept.place / "history"):
        while True:
            try:
                line = input(PROMPT)
            except EOFError:
                return
            if not conversation.take(line):
                return


@contextmanager
def history(path: Path) -> Iterator[None]:
    """Let the arrow keys recall earlier lines, also of earlier sessions, if there is readline."""
    try:
        import readline
    except ImportError:  # not on Windows
        yield
        return
    with suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(KEPT_LINES)
    try:
        yield
    finally:
        with suppress(OSError):
            readline.write_history_file(path)
