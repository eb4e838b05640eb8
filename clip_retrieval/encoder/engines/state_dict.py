"""What torch and open_clip do with a file's tensors: names are repaired before it, failures become one sentence."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import open_clip.factory
import torch

from clip_retrieval.encoder.formats.openai_pt import NOT_WEIGHTS, is_weight, read_weights
from clip_retrieval.encoder.formats.recognize import is_script
from clip_retrieval.encoder.formats.safetensors import strip_wrappers
from clip_retrieval.errors import describe_os_error, first_line

SHOWN = 3  # names of each kind
KINDS = (  # torch's lines, one for each kind or tensor
    ("missing", re.compile(r"Missing key\(s\) in state_dict: (.*)")),
    ("unexpected", re.compile(r"Unexpected key\(s\) in state_dict: (.*)")),
)
MISMATCH = re.compile(r"size mismatch for (\S+): .*shape (\S+\(\[.*?\]\)).*shape .*?(\(\[.*?\]\))")


def explain_loading(error: BaseException) -> str:
    """Return the first line of an error; if a state dict does not fit, how many names, and the first of them."""
    if isinstance(error, OSError):
        return describe_os_error(error)
    text = str(error)
    if "Error(s) in loading state_dict" not in text:
        return first_line(error)
    parts = []
    for kind, pattern in KINDS:
        found = pattern.search(text)
        if found:
            parts.append(list_names(kind, re.findall(r'"([^"]*)"', found[1])))
    shapes = MISMATCH.findall(text)
    if shapes:
        name, theirs, ours = shapes[0]
        shape = theirs.removeprefix("torch.Size")
        parts.append(f"{len(shapes)} of another shape, such as {name} {shape}, where the model has {ours}")
    return "; ".join(parts) or first_line(error)


def list_names(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} tensors {kind} ({', '.join(names[:SHOWN])}{more})"


@contextmanager
def reading_more_files() -> Iterator[None]:
    """Have open_clip accept names with prefixes of torch.compile or distributed training, and OpenAI's own files.

    open_clip itself only strips `module.`, refuses TorchScript archives and the sizes in their state dicts, and has no
    hook between reading a file and filling the model.
    """
    original = open_clip.factory.load_state_dict

    def load(checkpoint_path: str, *arguments: Any, **options: Any) -> dict[str, Any]:
        path = Path(checkpoint_path)
        with path.open("rb"):  # safetensors reports a file without permission as missing
            pass
        if zipfile.is_zipfile(path) and is_script(path):
            weights = read_weights(path)
            return {name: torch.from_numpy(np.array(weights[name])) for name in weights if is_weight(name)}
        found = strip_wrappers(original(checkpoint_path, *arguments, **options))
        return {name: value for name, value in found.items() if name not in NOT_WEIGHTS}

    open_clip.factory.load_state_dict = load
    try:
        yield
    finally:
        open_clip.factory.load_state_dict = original
