"""The fastest number format that is exact enough: tried on the first samples of the run, and kept in its manifest."""

from __future__ import annotations

import dataclasses
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from clip_retrieval.encoder.base import Embeddings, Encoder, Pixels
from clip_retrieval.encoder.config import Chosen, EncoderConfig
from clip_retrieval.encoder.load import list_precisions, load_encoder
from clip_retrieval.errors import EncoderError
from clip_retrieval.inference.manifest import Check
from clip_retrieval.inference.readers.loader import Loader
from clip_retrieval.inference.worker.remembered_checks import recall, remember
from clip_retrieval.sources.protocol import Source
from clip_retrieval.sources.types import Sample

logger = logging.getLogger(__name__)

CHECKED_SAMPLES = 8
SEARCHED_SAMPLES = 256  # read at most this many to find CHECKED_SAMPLES that can be used


@dataclass(frozen=True)
class FirstSamples:
    pixels: Pixels | None
    captions: list[str]


def candidates(config: EncoderConfig, settled: str | None) -> tuple[Chosen, ...]:
    """Return the formats to try, the fastest first: the one that is requested or already settled, or several."""
    if config.precision != "auto":
        return (config.precision,)
    found = list_precisions(config)
    return tuple(one for one in found if one == settled) or found


def settle(
    config: EncoderConfig, encoder: Encoder, loader: Loader, source: Source, formats: tuple[Chosen, ...]
) -> tuple[Encoder, Check | None]:
    """Return an encoder in the first of the formats that is exact enough; `encoder` has the first of them.

    If an earlier run chose the first one with a margin, nothing is tried.
    """
    if len(formats) == 1:
        return encoder, None
    earlier = recall(encoder, wanted_modalities(source))
    if earlier is not None:
        return encoder, earlier
    samples = first_samples(loader, source)
    with ThreadPoolExecutor(1) as threads:  # opening a model keeps one core busy, the next format has another runtime
        exact = threads.submit(lambda: encode(load_exact(config), samples))
        checks: list[Check] = []
        for precision in formats[:-1]:
            if precision != formats[0]:  # torch, if it replaces a converted model, has another format
                encoder = load(config, precision)
            got = try_to_encode(encoder, samples)
            checks.append(compare(exact.result(), got))
            if checks[-1].is_exact_enough:
                remember(encoder, checks[-1])
                return encoder, checks[-1]
            logger.info("%s in %s is not exact enough here: %s", config.clip_model, precision, checks[-1].least_cosine)
    return load(config, formats[-1]), checks[-1]


def wanted_modalities(source: Source) -> list[str]:
    wanted = {"image": source.config.enable_image, "text": source.config.enable_text}
    return [modality for modality, is_wanted in wanted.items() if is_wanted]


def load_exact(config: EncoderConfig) -> Encoder:
    return load_encoder(dataclasses.replace(config, precision="fp32"), workload="once")


def load(config: EncoderConfig, precision: Chosen) -> Encoder:
    return load_encoder(dataclasses.replace(config, precision=precision), workload="bulk")


def first_samples(loader: Loader, source: Source) -> FirstSamples:
    """Return the first samples of the whole run, so that every worker of it chooses the same format."""
    samples = (item for item in source.read(0, len(source.units)) if isinstance(item, Sample))
    for _ in range(SEARCHED_SAMPLES // CHECKED_SAMPLES):
        pixels, captions = [], []
        for batch in loader.batches(islice(samples, CHECKED_SAMPLES)):  # to its end, or the loader stays in the middle
            pixels += [] if batch.pixels is None else list(batch.pixels.copy())
            captions += [row.caption for row in batch.rows if row.caption is not None]
        if pixels or captions:
            return FirstSamples(np.stack(pixels) if pixels else None, captions)
    return FirstSamples(None, [])


def encode(encoder: Encoder, samples: FirstSamples) -> dict[str, Embeddings]:
    found: dict[str, Embeddings] = {}
    if samples.pixels is not None:
        found["image"] = encoder.encode_images(samples.pixels)
    if samples.captions:
        found["text"] = encoder.encode_texts(samples.captions)
    return found


def try_to_encode(encoder: Encoder, samples: FirstSamples) -> dict[str, Embeddings]:
    """Return the embeddings; none if the format overflows and so gives no numbers."""
    try:
        return encode(encoder, samples)
    except EncoderError as error:
        logger.info("%s in %s: %s", encoder.info.uri, encoder.info.precision, error)
        return {}


def compare(wanted: dict[str, Embeddings], got: dict[str, Embeddings]) -> Check:
    least = dict.fromkeys(wanted, -1.0)
    for name in got:
        cosines = np.nan_to_num(np.sum(wanted[name] * got[name], axis=1), nan=-1)
        least[name] = round(float(cosines.min()), 6)
    return Check(max((len(rows) for rows in wanted.values()), default=0), least)
