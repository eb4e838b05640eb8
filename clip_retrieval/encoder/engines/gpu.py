"""What a GPU needs besides the model: batches that fit its memory, streams that overlap, patches as one product."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from clip_retrieval.encoder.base import Embeddings, Pixels
from clip_retrieval.errors import EncoderError, first_line

logger = logging.getLogger(__name__)

SMALLEST_PATCH = 8


class Streams:
    """Two streams in turn: one batch is copied while the previous one is computed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.streams: list[Any] = []
        self.graphs: list[Graph] = []  # one for each stream, if they were recorded
        if device.type == "cuda":
            self.streams = [torch.cuda.Stream(device) for _ in range(2)]  # type: ignore[no-untyped-call]
            torch.cuda.synchronize(device)  # the weights were copied on another stream
        self.count = 0

    def start(self, encode: Callable[[Tensor], Tensor], pixels: Tensor) -> Callable[[], Tensor]:
        """Queue the copy and the encoding of a batch, and return a function that waits for the rows, on the CPU."""
        if not self.streams:
            rows = encode(pixels)
            return lambda: rows
        number = self.count % 2
        self.count += 1
        stream = self.streams[number]
        with torch.cuda.stream(stream):
            if self.graphs and self.graphs[number].fits(pixels):
                features = self.graphs[number].replay(pixels)
            else:
                features = encode(pixels.to(self.device, non_blocking=True))
            rows = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
            rows.copy_(features, non_blocking=True)
            # A wait that does not block would keep a core busy that readers need.
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record(stream)

        def wait() -> Tensor:
            done.synchronize()
            return rows

        return wait

    def record(self, encode: Callable[[Tensor], Tensor], shape: Sequence[int]) -> None:
        """Record the encoding of batches of this shape as CUDA graphs: one launch for each batch, not hundreds."""
        try:
            with torch.cuda.device(self.device):
                self.graphs = [Graph(encode, shape, stream) for stream in self.streams]
        except RuntimeError as error:  # too large for the memory, or a model that waits for its own results
            self.graphs = []
            torch.cuda.synchronize(self.device)
            logger.info("batches are encoded without CUDA graphs: %s", first_line(error))


class Graph:
    """The encoding of a batch of one shape on one stream, recorded; input and output have fixed places."""

    def __init__(self, encode: Callable[[Tensor], Tensor], shape: Sequence[int], stream: Any) -> None:
        with torch.cuda.stream(stream):
            self.pixels = torch.zeros(tuple(shape), dtype=torch.uint8, device=stream.device)
            encode(self.pixels)  # the first run of a shape chooses kernels, which cannot be recorded
        stream.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
            self.features = encode(self.pixels)

    def fits(self, pixels: Tensor) -> bool:
        return pixels.shape == self.pixels.shape

    def replay(self, pixels: Tensor) -> Tensor:
        self.pixels.copy_(pixels, non_blocking=True)
        self.graph.replay()
        return self.features.clone()  # the next replay overwrites it


class Patches(nn.Module):
    """A convolution whose patches do not overlap, as one product of matrices: nine times as fast in fp16."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.side = convolution.kernel_size[0]
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, images: Tensor) -> Tensor:
        """Return [n, width, rows, columns] for images [n, 3, height, width]."""
        count, channels, side = len(images), images.shape[1], self.side
        rows, columns = images.shape[2] // side, images.shape[3] // side
        whole = images[:, :, : rows * side, : columns * side]  # leftover pixels at the edge are in no patch
        cells = whole.reshape(count, channels, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
        patches = cells.reshape(count, rows * columns, channels * side * side)
        features = nn.functional.linear(patches, self.weight.flatten(1), self.bias)
        return features.transpose(1, 2).reshape(count, len(self.weight), rows, columns)


def are_patches(module: nn.Module) -> bool:
    """Say whether this is the first step of a vision transformer."""
    if not isinstance(module, nn.Conv2d) or module.groups != 1 or len(set(module.kernel_size)) != 1:
        return False
    is_plain = module.padding in ((0, 0), "valid") and module.dilation == (1, 1)
    return is_plain and module.stride == module.kernel_size and module.kernel_size[0] >= SMALLEST_PATCH


def with_patches(model: nn.Module) -> nn.Module:
    """Replace convolutions over patches in the model, which keeps its weights and their names."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if are_patches(child):
                setattr(parent, name, Patches(cast("nn.Conv2d", child)))
    return model


class DeviceMemory:
    """Remembers how many pictures fit, and tries half as many if they did not."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.most: int | None = None  # None: no batch was too large so far

    def in_parts(self, encode: Callable[[Pixels], Embeddings], pixels: Pixels) -> Iterator[Embeddings]:
        """Yield the embeddings of parts, in order; raises EncoderError if not even one picture fits."""
        start = 0
        while start < len(pixels):
            part = pixels[start : start + (self.most or len(pixels))]
            try:
                rows = encode(part)
            except torch.cuda.OutOfMemoryError as error:
                if len(part) == 1:
                    raise EncoderError(
                        f"{self.name}: the device's memory does not hold the model and one picture; use a smaller "
                        "model, or --device cpu"
                    ) from error
                self.most = max(1, len(part) // 2)
                torch.cuda.empty_cache()
                continue
            yield rows
            start += len(part)
