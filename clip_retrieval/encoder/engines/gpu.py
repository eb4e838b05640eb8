"""What a GPU needs beside the model: batches that fit its memory, and streams that overlap."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from clip_retrieval.encoder.base import Embeddings, Pixels
from clip_retrieval.errors import EncoderError

SMALLEST_TRIED, LARGEST_TRIED = 64, 2048
LEAST_GAIN = 1.05  # least speed-up for which the batch size is doubled
TIMED_RUNS = 2


class Streams:
    """Two of them, in turn: one batch is copied while the one before it is computed."""

    def __init__(self, device: torch.device) -> None:
        self.streams: list[Any] = []
        if device.type == "cuda":
            self.streams = [torch.cuda.Stream(device) for _ in range(2)]  # type: ignore[no-untyped-call]
        self.count = 0

    def next(self) -> AbstractContextManager[object]:
        """Give a stream to use; nothing on a CPU."""
        self.count += 1
        return torch.cuda.stream(self.streams[self.count % 2]) if self.streams else nullcontext()


class DeviceMemory:
    """Remembers how many pictures fit, and tries half as many where they did not."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.most: int | None = None  # None: no batch was too large so far

    def in_parts(self, encode: Callable[[Pixels], Embeddings], pixels: Pixels) -> Iterator[Embeddings]:
        """Yield the embeddings of parts, in order; raises EncoderError where not even one picture fits."""
        start = 0
        while start < len(pixels):
            part = pixels[start : start + (self.most or len(pixels))]
            try:
                rows = encode(part)
            except torch.cuda.OutOfMemoryError as error:
                if len(part) == 1:
                    raise EncoderError(
                        f"{self.name}: the device's memory does not hold the model and one picture; take a smaller "
                        "model, or --device cpu"
                    ) from error
                self.most = max(1, len(part) // 2)
                torch.cuda.empty_cache()
                continue
            yield rows
            start += len(part)


def find_batch_size(
    encode: Callable[[Pixels], object], memory: DeviceMemory, side: int, clock: Callable[[], float] = time.perf_counter
) -> int:
    """Return the batch size past which a larger one is no faster, or does not fit; it is tried on noise."""
    noise = np.random.default_rng(0).integers(0, 256, (LARGEST_TRIED, side, side, 3), dtype=np.uint8)
    best_size, best_rate = SMALLEST_TRIED, 0.0
    size = SMALLEST_TRIED
    while size <= LARGEST_TRIED:
        encode(noise[:size])  # the first run of a shape chooses kernels
        start = clock()
        for _ in range(TIMED_RUNS):
            encode(noise[:size])
        rate = TIMED_RUNS * size / max(clock() - start, 1e-9)
        if memory.most is not None:
            return max(1, min(best_size, memory.most))
        if rate < LEAST_GAIN * best_rate:
            return best_size
        best_size, best_rate, size = size, rate, size * 2
    return best_size
