"""manifest.json of an embeddings folder: identifies a run, so that a later one can resume it or refuse to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from clip_retrieval.encoder.base import EncoderInfo
from clip_retrieval.encoder.uri import absolute_uri
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.layout import FORMAT_VERSION, Partition
from clip_retrieval.options import to_json
from clip_retrieval.sources.protocol import Source
from clip_retrieval.sources.subset import Subset
from clip_retrieval.version import __version__

LEAST_COSINE = 0.999
UNITS_AT_ONCE = 4096


def describe_options(config: InferenceConfig, source: Source, plan: Sequence[Partition]) -> dict[str, Any]:
    """Return the part of the manifest that needs no model. Nothing in it depends on time or machine."""
    return {
        "format_version": FORMAT_VERSION,
        "made_by": f"clip-retrieval {__version__}",
        "options": to_json(config) | {"source": to_json(source.config)},
        "input": describe_input(source),
        "partition_count": len(plan),
    }


def describe_run(described: Mapping[str, Any], encoder: EncoderInfo, check: Check | None = None) -> dict[str, Any]:
    """Return the manifest: what `describe_options` says, the encoder, and the check of its number format."""
    about = describe_encoder(encoder) | {"pictures": described["options"]["source"]["pictures"]}
    if check is not None:
        about["precision_check"] = asdict(check)
    return {**described, "encoder": about}


def describe_input(source: Source) -> dict[str, Any]:
    """Return what the input is; for a subset, what the whole input is."""
    whole = source.whole if isinstance(source, Subset) else source
    return {"units": len(whole.units), "digest": digest_units(whole)}


def describe_encoder(info: EncoderInfo) -> dict[str, Any]:
    return {
        "clip_model": absolute_uri(info.uri),  # the index may be asked from another folder
        "fingerprint": info.fingerprint,
        "dimension": info.dimension,
        "precision": info.precision,
        "preprocess": to_json(info.preprocess),
    }


def digest_units(source: Source) -> str:
    """Return a digest of the units' names; for tars the base names, since their folder may be spelled in many ways."""
    is_tars = source.config.input_format == "webdataset"
    digest, units = hashlib.sha256(), iter(source.units)
    while some := list(islice(units, UNITS_AT_ONCE)):  # takes a third of the time of one by one
        names = (unit.rpartition("/")[2] for unit in some) if is_tars else some
        digest.update("\0".join([*names, ""]).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Check:
    """Accuracy of a number format: the least cosine with fp32 of each modality, over some samples."""

    samples: int
    least_cosine: dict[str, float]

    @property
    def is_exact_enough(self) -> bool:
        return bool(self.least_cosine) and min(self.least_cosine.values()) >= LEAST_COSINE
