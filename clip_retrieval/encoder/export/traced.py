"""Any open_clip model to ONNX graphs by torch's exporter: slower and larger graphs, but every architecture."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from clip_retrieval.encoder.export.graph import OPSET
from clip_retrieval.encoder.formats.onnx_folder import GRAPHS
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.errors import EncoderError

EXAMPLE_BATCH = 2  # the exporter would take a batch of one for a constant
# torch's message on a module that reshapes the result of attention: with a separate bias, the order in memory differs
# while it traces. The plain form of attention has the usual order.
OF_FUSED_ATTENTION = "Cannot view a tensor"


class ImageTower(nn.Module):
    """Scales uint8 pixels [n, s, s, 3] and encodes them."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.model = model
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(preprocess, name)).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        scaled = (pixels.permute(0, 3, 1, 2).to(torch.float32) / 255 - self.mean) / self.std
        return cast("Tensor", cast("Any", self.model).encode_image(scaled))


class TextTower(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return cast("Tensor", cast("Any", self.model).encode_text(tokens.to(torch.int64)))


def trace_towers(
    model: nn.Module, preprocess: Preprocess, context_length: int, folder: Path, towers: Sequence[str]
) -> None:
    """Write the graphs of these towers; raises EncoderError if torch cannot trace the model."""
    size = preprocess.size
    examples = {
        "image": (
            ImageTower(model, preprocess),
            "pixels",
            torch.zeros(EXAMPLE_BATCH, size, size, 3, dtype=torch.uint8),
        ),
        "text": (TextTower(model), "tokens", torch.ones(EXAMPLE_BATCH, context_length, dtype=torch.int32)),
    }
    for tower in towers:
        wrapper, name, example = examples[tower]
        export = partial(export_tower, wrapper.eval(), name, example, folder / GRAPHS[tower])
        try:
            try:
                export()
            except Exception as error:
                if OF_FUSED_ATTENTION not in explain(error):
                    raise
                with sdpa_kernel(SDPBackend.MATH):
                    export()
        except Exception as error:  # torch, onnxscript and sympy raise errors of all kinds here
            reason = explain(error)
            raise EncoderError(f"torch cannot export the {tower} tower of this model to ONNX: {reason}") from error


def export_tower(tower: nn.Module, name: str, example: Tensor, path: Path) -> None:
    with quiet(), without_fast_path():
        torch.onnx.export(
            tower,
            (example,),
            str(path),
            input_names=[name],
            output_names=["embeddings"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
            opset_version=OPSET,
            dynamo=True,
            external_data=True,
            optimize=True,
            verbose=False,
        )


def explain(error: BaseException) -> str:
    """Return the first line of the original error, which the exporter wraps in advice for developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the exporter's progress, which it prints, and its warnings about versions."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def without_fast_path() -> Iterator[None]:
    """Switch off torch's fused attention, which the exporter cannot trace."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)
