"""Checks of number formats that went well, in the cache of this machine, so that later runs of a model need none.

A check opens the model a second time, in fp32: seconds, and the whole of its weights read from disk. What it finds
depends on the weights, the runtime and the units of the CPU, which are the file's name, and hardly on the samples.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from uuid import uuid4

from clip_retrieval.cache_home import cache_home
from clip_retrieval.encoder.base import Encoder
from clip_retrieval.encoder.precision import cpu_units
from clip_retrieval.errors import ClipRetrievalError
from clip_retrieval.inference.manifest import Check
from clip_retrieval.json_files import parse_json
from clip_retrieval.options import to_json

logger = logging.getLogger(__name__)

SAFE_COSINE = 0.9995  # nearer to the bound of 0.999, other samples might decide otherwise
LEAST_SAMPLES = 8


def recall(encoder: Encoder, modalities: Collection[str]) -> Check | None:
    """Return the check of this encoder in an earlier run, where it covers these modalities: image, text."""
    place = kept_place(encoder)
    with suppress(OSError, ClipRetrievalError):  # there is none, or what was kept is damaged
        check = parse_json(place.read_bytes(), Check, place)
        if is_safe(check) and set(modalities) <= check.least_cosine.keys():
            return check
    return None


def remember(encoder: Encoder, check: Check) -> None:
    """Keep a check, unless other samples might decide otherwise, or the one that is kept says more."""
    if not is_safe(check) or recall(encoder, check.least_cosine) is not None:
        return
    place = kept_place(encoder)
    staged = place.with_suffix(f".{uuid4().hex}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        staged.write_text(json.dumps(asdict(check)), encoding="utf-8")
        staged.replace(place)
    except OSError as error:  # a full disk, or a cache of another user: the next run checks again
        logger.debug("the check of %s is not kept: %s", encoder.info.uri, error)


def is_safe(check: Check) -> bool:
    return check.samples >= LEAST_SAMPLES and min(check.least_cosine.values(), default=-1.0) >= SAFE_COSINE


def kept_place(encoder: Encoder) -> Path:
    info, engine = encoder.info, type(encoder).__name__  # torch may stand in for a model that cannot be converted now
    versions = [importlib.metadata.version(package) for package in ("onnxruntime", "openvino", "torch")]
    facts = [engine, info.fingerprint, to_json(info.preprocess), info.precision, info.device, cpu_units(), versions]
    return cache_home() / "checks" / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.json"
