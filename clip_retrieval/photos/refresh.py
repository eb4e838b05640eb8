"""Updates what is kept for a folder: looks for changes, embeds them, and adds them to the index."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clip_retrieval.cache_home import find_obstacle
from clip_retrieval.encoder.config import EncoderConfig, PictureConfig
from clip_retrieval.encoder.engines.open import check_model_name
from clip_retrieval.encoder.uri import absolute_uri
from clip_retrieval.errors import (
    BusyError,
    ConfigError,
    IndexBuildError,
    QueryError,
    SourceError,
    StorageError,
)
from clip_retrieval.filter.query import check_terms
from clip_retrieval.index.build import build_indices
from clip_retrieval.index.config import IndexConfig
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.run import run_inference
from clip_retrieval.layout import FAILURES_FOLDER, EmbeddingsFolder, IndexFolder, read_manifest
from clip_retrieval.media.config import VideoConfig
from clip_retrieval.photos.config import SearchConfig
from clip_retrieval.photos.damage import advising, may_be_damage
from clip_retrieval.photos.folders import About, Kept, remove
from clip_retrieval.photos.listing import Look
from clip_retrieval.photos.models import choose_model
from clip_retrieval.process.interrupts import ending_with
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.words import counted, in_words

logger = logging.getLogger(__name__)

FEW = 64  # pictures that one reader process decodes sooner than several start
FEW_READERS = 1
MIXED = ("picture, page or video", "pictures, pages or videos")
HELD = ("kept", "renamed", "embedded")  # counts of an update whose sum is the number afterwards
PARTITION = 500  # pictures that Ctrl-C may lose: a few seconds with a small model on a CPU, minutes with a large one
TOLD = (
    "image:",
    "other:cut_off",
    "other:killed_reader",
    "other:timeout",
    "other:too_many_frames",
)  # reasons that are reported; more are in failures/
EXACT_BYTES = 512 * 2**20  # of float32 rows: an exact index of that size answers in a tenth of a second


@dataclass(frozen=True)
class Wanted:
    """The model to embed a folder with, and whether that starts over."""

    clip_model: str
    starts_over: bool = False


def refresh(kept: Kept, config: SearchConfig, look: Look) -> About:
    """Embed what changed and update the index; returns what is kept afterwards.

    If another process is doing that, waits for it, unless there is an index to answer from.
    """
    about = kept.about()
    if (obstacle := find_obstacle()) is not None:
        if about is None or not about.seen or not is_of_model(about, config):
            raise StorageError(obstacle)
        if about.seen != look.digest:
            logger.warning("%s; this answer is of the previous state", obstacle)
        return about
    wanted = choose_wanted(about, config.clip_model, reembed=config.reembed)
    check_model_name(wanted.clip_model)
    check_terms(config.asked.words, wanted.clip_model)
    if about is not None and about.seen == look.digest and wanted == Wanted(about.clip_model):
        return about
    is_searchable = about is not None and bool(about.seen) and not wanted.starts_over
    try:
        with kept.locked(None if is_searchable else lambda: tell_of_wait(kept)):
            return bring_up_to_date(kept, wanted, look)
    except BusyError:
        assert about is not None
        logger.warning("another search is embedding changes of %s: this answer is of the previous state", kept.folder)
        return about
    except SourceError as error:
        if about is None or not is_searchable:
            raise
        logger.warning("%s; this answer is of the previous state", error)
        return about


def is_of_model(about: About, config: SearchConfig) -> bool:
    """Say whether the kept embeddings are of the model for this search."""
    return not config.reembed and (config.clip_model is None or absolute_uri(config.clip_model) == about.clip_model)


def build_again(kept: Kept, model: str, damage: Exception) -> None:
    """Build a damaged index again from the kept embeddings, which takes seconds.

    Raises ClipRetrievalError, or `damage` itself if nothing is damaged: then the index stays.
    """
    if not may_be_damage(damage):
        raise damage
    with kept.locked(lambda: tell_of_wait(kept)), advising(kept):
        start_over(kept, model, damage)


def start_over(kept: Kept, model: str, damage: Exception) -> None:
    logger.warning("the index of %s is built again: %s", kept.folder, getattr(damage, "what", damage))
    remove(Path(kept.index(model)))
    build(kept, model)


def tell_of_wait(kept: Kept) -> None:
    logger.info("another search is embedding %s: waiting for it", kept.folder)


def bring_up_to_date(kept: Kept, wanted: Wanted, look: Look) -> About:
    """Embed and index; the caller holds the lock."""
    about, model = kept.about(), wanted.clip_model
    if about is None or (about.clip_model != model and not about.seen):  # nothing was ever finished
        about = About(kept.folder, model)
        kept.write(about)
    if about.clip_model == model and about.seen and wanted.starts_over:
        about = replace(about, seen="")
        kept.write(about)
        kept.remove_model(model)
    if about.clip_model == model and about.seen == look.digest:
        return about  # another process did it meanwhile
    tell_of_raw(look, about)
    with advising(kept):
        pictures = embed(kept, model, look, about)
        try:
            build(kept, model)
        except (StorageError, IndexBuildError, QueryError, OSError) as error:
            if not may_be_damage(error) or not IndexFolder(kept.index(model)).exists():
                raise
            start_over(kept, model, error)
    before = about.clip_model
    about = About(kept.folder, model, look.digest, pictures, look.raw_only, look.files, look.holders["video"])
    kept.write(about)
    if before != model:
        kept.remove_model(before)
    return about


def tell_of_raw(look: Look, about: About) -> None:
    """Report once RAW files that have no JPEG next to them, and again when there are others."""
    if look.raw_only and look.raw_only != about.raw_only:
        logger.warning(
            "%s without a JPEG of the same name %s not searched, such as %s: RAW formats are not read",
            counted(look.raw_only, "RAW file"), "is" if look.raw_only == 1 else "are", look.example_raw,
        )  # fmt: skip


def embed(kept: Kept, model: str, look: Look, about: About) -> int:
    """Embed what is new or changed, and empty the rows of deleted files; finished work is kept.

    Returns how many pictures, pages and frames there are afterwards.
    """
    target, start = EmbeddingsFolder(kept.embeddings(model)), time.monotonic()
    before = count_embedded(target)
    if not before:
        logger.info(
            "embedding %s of %s with %s, once; Ctrl-C keeps what is done",
            look.counted_files(), kept.folder, model,
        )  # fmt: skip
    config = InferenceConfig(
        source=SourceConfig(
            input_dataset=kept.folder,
            enable_text=False,
            pictures=PictureConfig(exif_orientation=True),
            videos=VideoConfig(video_frames="keyframes"),
        ),
        output_folder=target.url,
        encoder=EncoderConfig(clip_model=model),
        num_prepro_workers=FEW_READERS if is_little(look, about) else None,
        write_batch_size=PARTITION,
        update=True,
    )
    manifest = read_manifest(target) if before else None
    with ending_with(lambda: say_stopped(target, look, manifest)):
        try:
            summary = run_inference(config)
        except ConfigError as error:
            raise ConfigError(
                f"{kept.folder} cannot be brought up to date: {error.what}", advice="--reembed embeds it again"
            ) from error
    revised = summary.revised.to_json() if summary.revised else {}
    tell_of_embedded(revised, time.monotonic() - start)
    reasons = {reason: count for reason, count in summary.now.reasons.items() if reason.startswith(TOLD)}
    reasons.pop("image:no_image", None)  # captions and json files without a picture
    if cut := reasons.pop("other:cut_off", 0):
        logger.warning(
            "%s %s cut off: only the frames before that are searched",
            counted(cut, "video"), "is" if cut == 1 else "are",
        )  # fmt: skip
    for sentence in look.passed_over():
        logger.warning("%s", sentence)
    if reasons:
        logger.warning(
            "%s could not be read (%s); %s/%s lists them",
            counted(sum(reasons.values()), *(MIXED if look.holders else ("picture",))),
            ", ".join(f"{count:,} {reason.partition(':')[2]}" for reason, count in reasons.items()),
            target.url, FAILURES_FOLDER,
        )  # fmt: skip
    return sum(revised[name] for name in HELD) if revised else count_embedded(target)


def is_little(look: Look, about: About) -> bool:
    """Say whether one reader finishes the changes before several have started; a video has thousands of frames."""
    return abs(look.files - about.files) <= FEW and look.holders["video"] == about.videos


def tell_of_embedded(revised: dict[str, int], seconds: float) -> None:
    """Log what an update changed."""
    words = (("embedded", "embedded"), ("renamed", "renamed"), ("removed", "gone"))
    done = [f"{revised[name]:,} {word}" for name, word in words if revised.get(name)]
    if done:
        logger.info("the folder changed: %s (%s)", ", ".join(done), in_words(seconds))


def say_stopped(target: EmbeddingsFolder, look: Look, before: dict[str, Any] | None = None) -> str:
    """Tidy up after a stopped update; return its last message. `before` is the manifest that it found.

    The first revision changes the manifest and empties the rows of pictures that are gone: without it they would count.
    """
    target.remove_leftovers(own=True)
    if before is not None and read_manifest(target) == before:
        return "stopped before any change was embedded: what was embedded before is kept; give the same command again"
    done = count_embedded(target)
    share = (
        counted(done, "picture, page or frame", "pictures, pages or frames")
        if look.holders
        else f"{min(done, look.files):,} of {look.counted_files()}"
    )
    return f"stopped: {share} are embedded and kept; give the same command again to go on"


def count_embedded(target: EmbeddingsFolder) -> int:
    """Return the number of rows in complete partitions, without emptied rows, whose pictures are gone."""
    if not Path(target.root).exists():
        return 0
    stats = (target.read_json(target.stats_name(done)) for done in target.partitions())
    return sum(int(made["sample_count"]) - int(made.get("deleted_count", 0)) for made in stats)


def build(kept: Kept, model: str) -> None:
    """Build the index, or update it; small folders get an exact one, which needs no training and no tuning."""
    target = IndexFolder(kept.index(model))
    embeddings = EmbeddingsFolder(kept.embeddings(model))
    dimension = int(((read_manifest(embeddings) or {}).get("encoder") or {}).get("dimension", 0))
    is_small = 4 * dimension * count_embedded(embeddings) <= EXACT_BYTES
    build_indices(
        IndexConfig(
            embeddings_folder=embeddings.url,
            index_folder=target.url,
            index_key="Flat" if is_small else None,
            update=target.exists(),
        )
    )


def choose_wanted(about: About | None, named: str | None, *, reembed: bool) -> Wanted:
    """Return the model for the folder.

    Raises ConfigError if another model is named than the folder was embedded with, unless it is to be embedded again.
    """
    model = None if named is None else absolute_uri(named)
    if about is None:
        choice = choose_model(named)
        logger.info("the model is %s: %s", choice.clip_model, choice.reason)
        return Wanted(choice.clip_model)
    if reembed:
        return Wanted(model or about.clip_model, starts_over=True)
    if model is None or model == about.clip_model:
        return Wanted(about.clip_model)
    if not about.seen:
        return Wanted(model)  # it was never searched with the other one
    raise ConfigError(
        f"{about.folder} was embedded with {about.clip_model}; add --reembed to embed it again with {model}, or leave "
        "--clip_model out"
    )
