"""Checks of number formats that went well, in the cache of this machine, so that later runs of a model need none.

A check opens the model a second time, in fp32: seconds, and the whole of its weights read from disk. What it finds
depends on the weights, the runtime and the units of the CPU, which make the file's name, and hardly on the samples.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from clip_retrieval.cache_home import cache_home, keep_small, read_small
from clip_retrieval.encoder.base import Encoder
from clip_retrieval.encoder.precision import cpu_units
from clip_retrieval.errors import ClipRetrievalError
from clip_retrieval.inference.manifest import Check
from clip_retrieval.installed import is_installed
from clip_retrieval.json_files import parse_json
from clip_retrieval.options import to_json

SAFE_COSINE = 0.9995  # closer to the bound of 0.999, other samples might decide differently
LEAST_SAMPLES = 8
RUNTIMES = ("onnxruntime", "openvino", "torch")


def recall(encoder: Encoder, modalities: Collection[str]) -> Check | None:
    """Return the check of this encoder in an earlier run, if it covers these modalities: image, text."""
    place = kept_place(encoder)
    data = read_small(place)
    if data is None:
        return None
    with suppress(ClipRetrievalError):  # the kept file is damaged
        check = parse_json(data, Check, place)
        if is_safe(check) and set(modalities) <= check.least_cosine.keys():
            return check
    return None


def remember(encoder: Encoder, check: Check) -> None:
    """Keep a check, unless other samples might decide differently, or the kept one covers more."""
    if is_safe(check) and recall(encoder, check.least_cosine) is None:
        keep_small(kept_place(encoder), json.dumps(asdict(check)))


def is_safe(check: Check) -> bool:
    return check.samples >= LEAST_SAMPLES and min(check.least_cosine.values(), default=-1.0) >= SAFE_COSINE


def kept_place(encoder: Encoder) -> Path:
    info, engine = encoder.info, type(encoder).__name__  # torch may replace a model that cannot be converted now
    versions = [importlib.metadata.version(package) for package in RUNTIMES if is_installed(package)]
    facts = [engine, info.fingerprint, to_json(info.preprocess), info.precision, info.device, cpu_units(), versions]
    return cache_home() / "checks" / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.json"
