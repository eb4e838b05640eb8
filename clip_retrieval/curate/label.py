"""The whole of `label`: columns of all rows, next to the metadata, one file for each file of embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_retrieval.curate.blocks import train
from clip_retrieval.curate.column_set import check_labels, check_names, claim_set, join_schemas
from clip_retrieval.curate.columns import (
    BACKGROUND_ROWS,
    Block,
    Clusters,
    ColumnPart,
    HeadScores,
    Labels,
    Outlier,
    Similarity,
    name_by_captions,
    name_by_labels,
)
from clip_retrieval.curate.config import LabelConfig
from clip_retrieval.curate.embedded import SEED, Embedded, Floats, Ids, opened, unit
from clip_retrieval.curate.heads import Head, read_head
from clip_retrieval.curate.threads import threads_alone
from clip_retrieval.embeddings.half_precision import widen
from clip_retrieval.embeddings.local_copy import fetched
from clip_retrieval.embeddings.rows import read_rows
from clip_retrieval.embeddings.vectors import VectorFile, Vectors, open_vectors
from clip_retrieval.encoder.base import Encoder
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.errors import ConfigError, SourceError
from clip_retrieval.layout import CAPTION, COLUMNS_FOLDER, EMBEDDING_FOLDERS, IndexFolder, Modality, read_manifest
from clip_retrieval.metadata import count_rows, open_writer
from clip_retrieval.metadata.joined import copy_column_set
from clip_retrieval.progress import show_progress
from clip_retrieval.query.config import SearcherConfig
from clip_retrieval.query.embed import check_model, choose_encoder
from clip_retrieval.revision import only_one
from clip_retrieval.storage import check_writable, temporary_folder
from clip_retrieval.tools.embed import embed_prompts, text_notes
from clip_retrieval.tools.inputs import read_lines
from clip_retrieval.tools.scores import choose_scores, logit_notes
from clip_retrieval.words import counted

BLOCK_ROWS = 4096
ROW_GROUP_BLOCKS = 4
TEXTS_AT_ONCE = 64
TRIES = 8  # of k-means: with few clusters, one try often leaves two in one
ROWS_PER_CLUSTER = 256  # sampled for training, and for names


@dataclass(frozen=True, kw_only=True)
class LabelResult:
    """Which columns were written, and where."""

    rows: int
    columns: list[str]
    filled: dict[str, int]  # rows that have a value in each column
    folder: str  # of the set of columns
    index_folder: str | None
    clusters: list[str | None]  # their names
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Prompts:
    """Labels, embedded."""

    labels: list[str]
    rows: Floats
    encoder: Encoder
    notes: list[str]


def run_label(config: LabelConfig) -> LabelResult:
    """Compute the columns; files of an earlier run with the same options stay."""
    with opened(config.embeddings_folder, config.rows.modality) as embedded, ExitStack() as stack:
        others = None
        if config.similarity:
            found = {config.rows.modality: open_others(embedded, config.rows.modality)}
            others = stack.enter_context(fetched(found, temporary_folder))[config.rows.modality]
        return label(config, embedded, others)


def label(config: LabelConfig, embedded: Embedded, others: Vectors | None) -> LabelResult:
    """Check what can be checked before long work, and do it."""
    heads = [
        read_head(path, embedded.vectors.dim, config.heads.head_activation, config.heads.head_output)
        for path in config.heads.head
    ]
    check_index(config, embedded)
    check_writable(embedded.folder)
    prompts = embed_labels(config, embedded) if config.prompts.is_given else None
    with only_one(embedded.folder):
        parts = make_parts(config, embedded, prompts, heads)
        schema = join_schemas(parts, config.name)
        check_names(embedded, config, schema, heads)
        claim_set(config, embedded)
        write_columns(config.name, embedded, others, parts)
        if config.index_folder is not None:
            copy_column_set(embedded.folder, IndexFolder(config.index_folder), config.name)
    named = [part.names for part in parts if isinstance(part, Clusters)]
    return LabelResult(
        rows=embedded.row_count,
        columns=list(schema.names),
        filled=count_filled(config.name, embedded, list(schema.names)),
        folder=embedded.folder.path(f"{COLUMNS_FOLDER}/{config.name}"),
        index_folder=config.index_folder,
        clusters=list(named[0]) if named else [],
        notes=[] if prompts is None else prompts.notes,
    )


def open_others(embedded: Embedded, modality: Modality) -> Vectors:
    """Open the embeddings of the other modality; raises SourceError if there are none of the same rows."""
    other: Modality = "text" if modality == "image" else "image"
    found = open_vectors(embedded.folder, EMBEDDING_FOLDERS[other])
    if found is None:
        raise SourceError(f"--similarity needs both modalities, and {embedded.folder.url} has no {other} embeddings")
    if (found.row_count, found.dim) != (embedded.row_count, embedded.vectors.dim):
        raise SourceError(
            f"{embedded.folder.url} has {counted(embedded.row_count, modality)} of {embedded.vectors.dim} dimensions "
            f"and {counted(found.row_count, other)} of {found.dim}; they are not of the same samples"
        )
    return found


def check_index(config: LabelConfig, embedded: Embedded) -> None:
    """Raise ConfigError if the index has other rows."""
    if config.index_folder is None:
        return
    folder = IndexFolder(config.index_folder)
    rows = count_rows(folder) if folder.exists() else None
    if rows != embedded.row_count:
        what = "no metadata" if rows is None else f"{counted(rows, 'row')} of metadata"
        raise ConfigError(
            f"{config.index_folder} has {what}, and {config.embeddings_folder} {counted(embedded.row_count, 'row')}; "
            "name an index of these embeddings"
        )


def embed_labels(config: LabelConfig, embedded: Embedded) -> Prompts:
    """Return the labels' embeddings, made by the model of the folder."""
    given = [*config.prompts.label, *(read_lines(config.prompts.labels_file) if config.prompts.labels_file else ())]
    labels = check_labels(given)
    expected = (read_manifest(embedded.folder) or {}).get("encoder")
    model = config.model
    chosen = choose_encoder(
        expected,
        SearcherConfig(clip_model=model.clip_model, device=model.device, clip_cache_path=model.clip_cache_path),
    )
    encoder = load_encoder(chosen)
    check_model(encoder, expected)
    if encoder.info.dimension != embedded.vectors.dim:
        raise ConfigError(
            f"{encoder.info.uri} has {encoder.info.dimension} dimensions, the embeddings have {embedded.vectors.dim}"
        )
    found = embed_prompts(encoder, labels, config.prompts.template, TEXTS_AT_ONCE)
    squash = choose_scores(config.prompts.scores, encoder.info)
    notes = [*logit_notes(squash, encoder.info), *text_notes(encoder, labels, found.truncated_count)]
    return Prompts(labels, found.rows, encoder, notes)


def make_parts(config: LabelConfig, embedded: Embedded, prompts: Prompts | None, heads: list[Head]) -> list[ColumnPart]:
    parts: list[ColumnPart] = []
    if prompts is not None:
        squash = choose_scores(config.prompts.scores, prompts.encoder.info)
        parts.append(
            Labels(config.name, prompts.labels, prompts.rows, prompts.encoder.info, squash, config.prompts.each)
        )
    if config.similarity:
        parts.append(Similarity())
    parts += [HeadScores(head) for head in heads]
    if config.outlier:
        ids, rows = sample_rows(embedded, BACKGROUND_ROWS)
        if len(ids) < 2:
            raise SourceError(f"{embedded.folder.url} has too few embeddings for outliers")
        parts.append(Outlier(rows, ids))
    if config.clusters is not None:
        parts.append(find_clusters(embedded, config.clusters, prompts))
    return parts


def sample_rows(embedded: Embedded, count: int) -> tuple[Ids, Floats]:
    """Return some ids, ascending, and their unit rows; zero rows are left out."""
    random = np.random.default_rng(SEED)
    ids = np.sort(random.choice(embedded.row_count, min(count, embedded.row_count), replace=False))
    rows = read_rows(embedded.vectors, ids)
    filled = rows.any(axis=1)
    return ids[filled], unit(rows[filled])


def find_clusters(embedded: Embedded, count: int, prompts: Prompts | None) -> Clusters:
    ids, rows = sample_rows(embedded, count * ROWS_PER_CLUSTER)
    if len(ids) < count:
        raise ConfigError(f"clusters is {count}, and there are {counted(len(ids), 'embedding')}; ask for fewer")
    centroids = train(rows, count, tries=TRIES)
    if prompts is not None:
        return Clusters(centroids, name_by_labels(centroids, prompts.labels, prompts.rows))
    if CAPTION not in embedded.column_names or embedded.metadata is None:
        return Clusters(centroids, [None] * count)
    captions = embedded.metadata.rows(ids, [CAPTION])[CAPTION].to_pylist()
    return Clusters(centroids, name_by_captions((rows @ centroids.T).argmax(axis=1), captions, count))


def write_columns(name: str, embedded: Embedded, others: Vectors | None, parts: list[ColumnPart]) -> None:
    """Write a file of columns for each file of embeddings; existing ones stay."""
    schema = join_schemas(parts, name)
    place = f"{COLUMNS_FOLDER}/{name}"
    width = len(str(len(embedded.vectors.files)))
    first = 0
    with (
        show_progress("labeling", embedded.row_count) as advance,
        threads_alone() as threads,
    ):
        for number, file in enumerate(embedded.vectors.files):
            target = f"{place}/{name}_{number:0{width}d}.parquet"
            if not embedded.folder.exists(target):
                with embedded.folder.staged(target) as staged, open_writer(staged, schema) as writer:
                    for blocks in blocks_of(embedded.vectors, others, file, first):
                        tables = threads.map(lambda block: table_of(block, parts, schema), blocks)
                        writer.write_table(pa.concat_tables(tables))
                        advance(sum(len(block.rows) for block in blocks))
            else:
                advance(file.row_count)
            first += file.row_count


def count_filled(name: str, embedded: Embedded, columns: list[str]) -> dict[str, int]:
    """Return how many rows have a value in each column of a set."""
    place = f"{COLUMNS_FOLDER}/{name}"
    filled = dict.fromkeys(columns, 0)
    for file in embedded.folder.names(place, ".parquet"):
        with embedded.folder.fs.open(embedded.folder.path(f"{place}/{file}")) as opened_file:
            table = pq.read_table(opened_file, columns=columns)
        for column in columns:
            filled[column] += table.num_rows - table[column].null_count
    return filled


def table_of(block: Block, parts: list[ColumnPart], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_arrays([array for part in parts for array in part.compute(block)], schema=schema)


def blocks_of(vectors: Vectors, others: Vectors | None, file: VectorFile, first: int) -> Iterator[list[Block]]:
    """Yield the blocks of a file, those of one row group at a time."""
    for start, stored in vectors.checked_parts(file, BLOCK_ROWS * ROW_GROUP_BLOCKS):
        found = []
        for at in range(0, len(stored), BLOCK_ROWS):
            rows = unit(widen(stored[at : at + BLOCK_ROWS]))
            begin = first + start + at
            theirs = None if others is None else unit(read_rows(others, np.arange(begin, begin + len(rows))))
            found.append(Block(begin, rows, theirs))
        yield found
