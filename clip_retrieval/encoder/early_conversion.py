"""The conversion of a model that needs no torch, on a thread while the input of bulk work is listed."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.load import convert_without_torch
from clip_retrieval.process.stoppable import Stoppable


class EarlyConversion:
    """Use it as a context. After the block the thread has ended; a half-made model is removed.

    Errors, and models that only torch can convert, are left to `load_encoder`.
    """

    def __init__(self) -> None:
        self.thread: Stoppable | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.thread is not None:
            self.thread.stop()

    def begin(self, config: EncoderConfig) -> None:
        self.thread = Stoppable(lambda: convert_without_torch(config))
        self.thread.start()

    def wait(self) -> None:
        if self.thread is not None:
            self.thread.join()
