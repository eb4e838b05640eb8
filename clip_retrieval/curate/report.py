"""The whole of `report`: what is in an embeddings folder, on one page to look at before training."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.curate.blocks import train
from clip_retrieval.curate.charts import bars, histogram, table
from clip_retrieval.curate.columns import BACKGROUND_ROWS, Block, Outlier, name_by_captions
from clip_retrieval.curate.config import ReportConfig
from clip_retrieval.curate.embedded import SEED, Embedded, opened, unit
from clip_retrieval.curate.languages import NOT_SURE, SURE, advice, can_tell, count_languages
from clip_retrieval.curate.output import about_folder
from clip_retrieval.curate.page import PAGE, Section, write_page
from clip_retrieval.curate.sample import Sample, take_sample
from clip_retrieval.curate.scripts import count_scripts
from clip_retrieval.embeddings.rows import read_rows
from clip_retrieval.embeddings.vectors import open_vectors
from clip_retrieval.errors import ConfigError, SourceError
from clip_retrieval.layout import EMBEDDING_FOLDERS, FAILURES_FOLDER, MODALITIES, SHARD_SIZE, Modality
from clip_retrieval.metadata import read_records
from clip_retrieval.progress import show_progress
from clip_retrieval.storage import Folder
from clip_retrieval.web_pages import HEAD_BYTES, is_page
from clip_retrieval.words import counted

CLUSTERS = 20
TRIES = 4  # of k-means
SHOWN_PICTURES = 6  # of a cluster
SHOWN_OUTLIERS = 18
SHOWN_PAIRS = 9
COMPARED_ROWS = 1000  # with all others, for near-duplicates
ROWS_AT_ONCE = 8192
SIDES = (64, 128, 256, 384, 512, 768, 1024, 2048, 4096)  # pixels
SIZES = (1, 4, 16, 64, 256, 1024, 4096)  # kB
COSINES = tuple(np.round(np.arange(0, 0.62, 0.04), 2).tolist())
LENGTHS = (1, 10, 20, 40, 80, 160, 320)  # characters


@dataclass(frozen=True, kw_only=True)
class ReportResult:
    """The numbers that the page reports."""

    rows: int
    embeddings: dict[str, int]  # rows that are there, by modality
    failures: dict[str, int]  # by part and reason
    scripts: dict[str, int]  # of captions in the sample
    languages: dict[str, int] | None  # of the same; None if the package that detects them is missing
    mean_similarity: float | None  # of pictures and their captions
    near_duplicates: float  # share of rows that have one, by a sample
    clusters: list[dict[str, Any]]
    sample: int
    output_file: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run_report(config: ReportConfig) -> ReportResult:
    """Write the page, and return its numbers."""
    with opened(config.embeddings_folder, config.rows.modality) as embedded:
        return tell(embedded, config)


def tell(embedded: Embedded, config: ReportConfig) -> ReportResult:
    path = Path(config.output_file)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file")
    target = Folder(str(path.parent))
    if target.exists(path.name) and not is_page(PAGE, target.read_bytes(path.name, HEAD_BYTES)):
        raise ConfigError(f"{path} exists and is not a report; name another file")
    sample = take_sample(embedded, config.sample)
    if len(sample.ids) < 2:
        raise SourceError(f"{config.embeddings_folder} has too few embeddings for a report")
    if config.clusters is not None and config.clusters > len(sample.ids):
        raise ConfigError(
            f"clusters is {config.clusters}, and there are {counted(len(sample.ids), 'embedding')} in the sample; "
            "ask for fewer"
        )
    there: dict[str, int] = {name: count for name in MODALITIES if (count := count_filled(embedded, name)) is not None}
    failures = count_failures(embedded)
    captions = [caption for caption in sample.captions if caption]
    scripts = count_scripts(captions)
    languages = count_languages(captions) if can_tell() else None
    similarities = compare_modalities(sample, config.rows.modality)
    clusters, cluster_sections = tell_clusters(sample, config.clusters or CLUSTERS)
    share, duplicates = tell_duplicates(sample, config.threshold)
    sections = [
        overview(embedded, there, sample),
        Section("Failures", "" if failures else "No failure is recorded.", body=bars(failures) if failures else ""),
        *tell_sizes(sample),
        *tell_captions(sample, scripts, languages),
        *tell_similarities(similarities),
        duplicates,
        *cluster_sections,
        tell_outliers(sample),
    ]
    write_page(target, path.name, f"{counted(embedded.row_count, 'row')} of {embedded.folder.url}", sections)
    return ReportResult(
        rows=embedded.row_count,
        embeddings=there,
        failures=dict(failures),
        scripts=dict(scripts),
        languages=None if languages is None else dict(languages),
        mean_similarity=float(similarities.mean()) if len(similarities) else None,
        near_duplicates=share,
        clusters=clusters,
        sample=len(sample.ids),
        output_file=config.output_file,
    )


def count_filled(embedded: Embedded, modality: Modality) -> int | None:
    """Return how many rows have an embedding of a modality; None if the folder has no such embeddings."""
    vectors = open_vectors(embedded.folder, EMBEDDING_FOLDERS[modality])
    if vectors is None:
        return None
    found = 0
    with show_progress(f"counting {modality}s", vectors.row_count) as advance:
        for file in vectors.files:
            for _, stored in vectors.checked_parts(file, ROWS_AT_ONCE):
                found += int(stored.any(axis=1).sum())
                advance(len(stored))
    return found


def count_failures(embedded: Embedded) -> list[tuple[str, int]]:
    counts: Counter[str] = Counter()
    for name in embedded.folder.names(FAILURES_FOLDER, ".parquet"):
        for record in read_records(embedded.folder, f"{FAILURES_FOLDER}/{name}"):
            counts[f"{record.get('part')}: {record.get('reason')}"] += 1
    return counts.most_common()


def overview(embedded: Embedded, there: dict[str, int], sample: Sample) -> Section:
    about = about_folder(embedded.folder, embedded.row_count)
    rows = [
        ("rows", f"{embedded.row_count:,}"),
        *((f"{name} embeddings", f"{count:,} ({count / embedded.row_count:.1%})") for name, count in there.items()),
        ("dimensions", str(embedded.vectors.dim)),
        ("model", str(about["model"] or "not known")),
        ("columns", ", ".join(embedded.column_names) or "none"),
        ("sample", f"{counted(len(sample.ids), 'row')}: the source of everything below, unless noted"),
    ]
    return Section("Overview", body=table(rows))


def tell_sizes(sample: Sample) -> list[Section]:
    """Return histograms of the sizes in the metadata: sides in pixels, and bytes in tars."""
    sections = []
    for column in ("width", "height"):
        values = sample.numbers(column)
        if len(values):
            sections.append(
                Section(f"{column.capitalize()} in pixels", body=bars(histogram(values, SIDES, whole=True)))
            )
    sizes = sample.numbers(SHARD_SIZE)
    if len(sizes):
        sections.append(Section("Size of pictures in kB", body=bars(histogram(sizes / 1000, SIZES))))
    return sections


def tell_captions(
    sample: Sample, scripts: list[tuple[str, int]], languages: list[tuple[str, int]] | None
) -> list[Section]:
    if not sample.captions:
        return []
    texts = [caption for caption in sample.captions if caption]
    lengths = np.array([len(text) for text in texts], np.float64)
    again = len(texts) - len(set(texts))
    note = (
        f"{counted(len(sample.captions) - len(texts), 'row')} without a caption, {again:,} captions that repeat another"
    )
    about = (
        f"ISO 639 codes, detected by a model of 176 languages; {NOT_SURE}: less than {SURE:.0%} probable, "
        "as for many short captions"
    )
    return [
        Section("Scripts of captions", note if languages is not None else f"{note}; {advice()}", body=bars(scripts)),
        *([Section("Languages of captions", about, body=bars(languages))] if languages else []),
        Section("Length of captions in characters", body=bars(histogram(lengths, LENGTHS, whole=True))),
    ]


def compare_modalities(sample: Sample, modality: Modality) -> NDArray[np.float32]:
    """Return the cosines of pictures and captions in the sample; none if only one of the two is there."""
    other: Modality = "text" if modality == "image" else "image"
    vectors = open_vectors(sample.embedded.folder, EMBEDDING_FOLDERS[other])
    if vectors is None or (vectors.row_count, vectors.dim) != (sample.embedded.row_count, sample.rows.shape[1]):
        return np.empty(0, np.float32)
    rows = unit(read_rows(vectors, sample.ids))
    found: NDArray[np.float32] = np.einsum("nd,nd->n", sample.rows, rows)[rows.any(axis=1)]
    return found


def tell_similarities(similarities: NDArray[np.float32]) -> list[Section]:
    if not len(similarities):
        return []
    note = f"mean {similarities.mean():.3f}, 5 % below {np.quantile(similarities, 0.05):.3f}"
    wide = similarities.astype(np.float64)
    return [Section("Cosine of picture and caption", note, body=bars(histogram(wide, COSINES, "{:.2f}")))]


def tell_duplicates(sample: Sample, threshold: float) -> tuple[float, Section]:
    """Compare some rows of the sample with all rows; return the share that has a near-duplicate, and a section."""
    step = max(1, len(sample.ids) // COMPARED_ROWS)
    own, ids = sample.rows[::step], sample.ids[::step]
    best, partners = np.full(len(ids), -1, np.float32), np.zeros(len(ids), np.int64)
    vectors, first = sample.embedded.vectors, 0
    with show_progress("comparing", vectors.row_count) as advance:
        for file in vectors.files:
            for start, rows in vectors.parts_of(file, ROWS_AT_ONCE):
                products = own @ unit(rows).T
                begin = first + start
                here = np.flatnonzero((ids >= begin) & (ids < begin + len(rows)))
                products[here, ids[here] - begin] = -1
                highest = products.argmax(axis=1)
                value = products[np.arange(len(ids)), highest]
                better = value > best
                best[better], partners[better] = value[better], highest[better] + begin
                advance(len(rows))
            first += file.row_count
    share = float((best >= threshold).mean())
    order = np.argsort(-best, kind="stable")
    order = order[best[order] >= threshold]
    both = np.sort(np.stack([ids[order], partners[order]], axis=1), axis=1)
    shown = np.sort(np.unique(both, axis=0, return_index=True)[1])[:SHOWN_PAIRS]  # a pair may be found from both ends
    pairs = Sample(sample.embedded, both[shown].ravel(), own[:0])
    figures = pairs.figures(np.arange(2 * len(shown)), "row {}", np.repeat(best[order[shown]], 2))
    note = (
        f"{share:.1%} of {counted(len(ids), 'row')} have another row within cosine {threshold:g} (of all rows); "
        "the nearest pairs, side by side. The command dedup finds all."
    )
    return share, Section("Near-duplicates", note, figures)


def tell_clusters(sample: Sample, count: int) -> tuple[list[dict[str, Any]], list[Section]]:
    """Return the clusters of the sample, the largest first, with the pictures nearest to their middles."""
    count = min(count, len(sample.ids))
    centroids = train(sample.rows, count, tries=TRIES)
    products = sample.rows @ centroids.T
    own = products.argmax(axis=1)
    names = name_by_captions(own, sample.captions, count) if sample.captions else [None] * count
    sizes = np.bincount(own, minlength=count)
    told, sections = [], []
    for cluster in np.argsort(-sizes, kind="stable").tolist():
        if not sizes[cluster]:
            continue
        members = np.flatnonzero(own == cluster)
        nearest = members[np.argsort(-products[members, cluster], kind="stable")[:SHOWN_PICTURES]]
        told.append({"name": names[cluster], "share": float(sizes[cluster] / len(own))})
        figures = sample.figures(nearest, "", products[nearest, cluster])
        title = f"Cluster {len(told)}: {names[cluster]}" if names[cluster] else f"Cluster {len(told)}"
        sections.append(Section(title, f"{sizes[cluster] / len(own):.1%} of the rows", figures))
    return told, sections


def tell_outliers(sample: Sample) -> Section:
    places = np.sort(
        np.random.default_rng(SEED).choice(len(sample.ids), min(len(sample.ids), BACKGROUND_ROWS), replace=False)
    )
    outlier = Outlier(sample.rows[places], places)
    values = np.concatenate(
        [
            np.asarray(outlier.compute(Block(start, sample.rows[start : start + ROWS_AT_ONCE], None))[0], np.float32)
            for start in range(0, len(sample.ids), ROWS_AT_ONCE)
        ]
    )
    farthest = np.argsort(-values, kind="stable")[:SHOWN_OUTLIERS]
    note = "The rows farthest from their nearest neighbors in the sample: odd pictures, or broken ones."
    return Section("Outliers", note, sample.figures(farthest, "row {}", values[farthest]))
