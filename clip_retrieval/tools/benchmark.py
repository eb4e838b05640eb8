"""The whole of `benchmark`: how often each model names the class of a picture, and how fast."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.encoder.base import Encoder
from clip_retrieval.encoder.facts import count_parameters
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.encoder.uri import parse_uri
from clip_retrieval.tools.config import BenchmarkConfig
from clip_retrieval.tools.embed import embed_pictures, embed_prompts, truncation_notes
from clip_retrieval.tools.inputs import ClassFolder, Failure, list_classes
from clip_retrieval.tools.models import bytes_on_disk
from clip_retrieval.tools.scores import Floats, cosines, ranks_of_truth

TOP = 5


@dataclass(frozen=True)
class ClassScore:
    """One class: its readable pictures, and the shares of them that were named right."""

    name: str
    images: int
    accuracy_1: float | None  # None if the class has no readable picture
    accuracy_5: float | None


@dataclass(frozen=True)
class Accuracy:
    """Shares of right answers: micro is over pictures, macro is the mean over classes."""

    images: int
    micro_1: float
    micro_5: float
    macro_1: float
    macro_5: float
    classes: tuple[ClassScore, ...]


@dataclass(frozen=True)
class Speed:
    """How long a model took."""

    load_seconds: float  # up to its first embedded picture and text, since some engines open their files only then
    images_per_second: float  # including reading and decoding
    texts_per_second: float


@dataclass(frozen=True)
class ModelScore:
    """One model's row of the comparison."""

    model: str
    accuracy: Accuracy
    speed: Speed
    parameters: int | None
    bytes_on_disk: int | None
    device: str
    precision: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class BenchmarkResult:
    """The comparison of all models on one folder."""

    folder: str
    top: int  # 5, or the number of classes if there are fewer
    templates: tuple[str, ...]
    models: tuple[ModelScore, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run_benchmark(config: BenchmarkConfig) -> BenchmarkResult:
    """Score each model on the folder; raises ClipRetrievalError."""
    classes, notes = list_classes(config.folder, config.max_per_class)
    scores, failures = [], tuple[Failure, ...]()
    for uri in config.clip_model:
        score, failures = score_model(config, uri, classes)  # the same pictures fail with every model
        scores.append(score)
    return BenchmarkResult(
        folder=config.folder,
        top=min(TOP, len(classes)),
        templates=config.template,
        models=tuple(scores),
        failures=failures,
        notes=tuple(notes),
    )


def score_model(
    config: BenchmarkConfig, uri: str, classes: Sequence[ClassFolder]
) -> tuple[ModelScore, tuple[Failure, ...]]:
    """Open one model, embed labels and pictures, and score it."""
    start = time.perf_counter()
    encoder = load_encoder(config.runtime.of_model(uri), workload="bulk")
    warm_up(encoder)
    loaded = time.perf_counter()
    labels = embed_prompts(encoder, [found.name for found in classes], config.template, config.batch_size)
    labeled = time.perf_counter()
    paths = [path for found in classes for path in found.pictures]
    pictures = embed_pictures(encoder, paths, config.batch_size, config.pictures)
    done = time.perf_counter()
    truth = np.repeat(np.arange(len(classes)), [len(found.pictures) for found in classes])[list(pictures.positions)]
    score = ModelScore(
        model=uri,
        accuracy=measure(cosines(pictures.rows, labels.rows), truth, [found.name for found in classes]),
        speed=Speed(
            load_seconds=loaded - start,
            images_per_second=len(paths) / max(done - labeled, 1e-9),
            texts_per_second=len(classes) * max(1, len(config.template)) / max(labeled - loaded, 1e-9),
        ),
        parameters=count_parameters(encoder),
        bytes_on_disk=bytes_on_disk(parse_uri(uri)),
        device=encoder.info.device,
        precision=encoder.info.precision,
        notes=tuple(truncation_notes(labels.truncated_count)),
    )
    return score, pictures.failures


def warm_up(encoder: Encoder) -> None:
    side = encoder.info.preprocess.size
    encoder.encode_images(np.zeros((1, side, side, 3), np.uint8))
    encoder.encode_texts(["a"])


def measure(cosine: Floats, truth: NDArray[np.integer[Any]], names: Sequence[str]) -> Accuracy:
    """Return the accuracies for pictures [n] with the right labels `truth`, from cosines [n, classes]."""
    ranks = ranks_of_truth(cosine, truth)
    classes = tuple(measure_class(name, ranks[truth == at]) for at, name in enumerate(names))
    return Accuracy(
        images=len(ranks),
        micro_1=float(np.mean(ranks < 1)),
        micro_5=float(np.mean(ranks < TOP)),
        macro_1=mean_of(found.accuracy_1 for found in classes),
        macro_5=mean_of(found.accuracy_5 for found in classes),
        classes=classes,
    )


def mean_of(shares: Iterable[float | None]) -> float:
    """Return the mean of the shares of the classes that have one."""
    return float(np.mean([share for share in shares if share is not None]))


def measure_class(name: str, ranks: NDArray[np.int64]) -> ClassScore:
    if not len(ranks):
        return ClassScore(name, 0, None, None)
    return ClassScore(name, len(ranks), float(np.mean(ranks < 1)), float(np.mean(ranks < TOP)))
