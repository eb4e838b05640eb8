"""Folders of ONNX graphs on a light runtime: neither torch nor transformers is loaded, weights stay mapped files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.encoder.base import (
    Embeddings,
    EncoderInfo,
    Pixels,
    Tokens,
    Workload,
    check_texts,
    check_tower,
    normalise,
)
from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.engines.sessions import Runtime, Session, is_installed, open_session, supports_bf16
from clip_retrieval.encoder.formats.onnx_folder import GRAPHS, OnnxFolder, read_about, read_vocabulary
from clip_retrieval.encoder.tokenizer import BpeTokenizer
from clip_retrieval.encoder.uri import ModelName
from clip_retrieval.errors import EncoderError

GROUP_SIZE = 32  # items that are encoded together: more do not fit the caches


def open_onnx(name: ModelName, config: EncoderConfig, workload: Workload) -> OnnxEncoder:
    """Read what the folder holds; its graphs are opened when they are first used."""
    folder = Path(name.architecture)
    about = read_about(folder)
    if config.device not in ("auto", "cpu"):
        raise EncoderError(f"{name.uri} runs on the CPU; for {config.device} name the model it was converted from")
    runtime = choose_runtime(name, workload)
    info = EncoderInfo(
        uri=name.uri,
        dimension=about.dimension,
        preprocess=about.preprocess,
        fingerprint=about.fingerprint,
        precision=choose_precision(name, config, runtime),
        device="cpu",
        towers=about.towers,
        logit_scale=about.logit_scale,
        logit_bias=about.logit_bias,
        vocabulary=read_vocabulary(folder),
    )
    return OnnxEncoder(folder, about, info, runtime, is_bulk=workload == "bulk")


def choose_runtime(name: ModelName, workload: Workload) -> Runtime:
    """Return what the name asks for; else OpenVINO only for much work, since it takes twice as long to open."""
    if name.weights is not None:
        return "openvino" if name.weights == "openvino" else "onnxruntime"
    return "openvino" if workload == "bulk" and is_installed("openvino") else "onnxruntime"


def choose_precision(name: ModelName, config: EncoderConfig, runtime: Runtime) -> str:
    """Return what the graphs compute in; OpenVINO's bfloat16 is as exact as it is fast where the CPU has it."""
    if config.precision != "auto":
        if runtime == "onnxruntime" and config.precision != "fp32":
            raise EncoderError(
                f"{name.uri}: ONNX Runtime computes in fp32 here; bf16 needs OpenVINO (runtime=openvino)"
            )
        return config.precision
    return "bf16" if runtime == "openvino" and supports_bf16() else "fp32"


class Tokenizer(Protocol):
    def tokenize(self, texts: Sequence[str]) -> tuple[Tokens, int]:
        """Return the ids, and how many texts were cut."""
        ...


class OnnxEncoder:
    """visual.onnx and textual.onnx of one folder."""

    def __init__(self, folder: Path, about: OnnxFolder, info: EncoderInfo, runtime: Runtime, *, is_bulk: bool) -> None:
        self.folder, self.about, self.info, self.runtime, self.is_bulk = folder, about, info, runtime, is_bulk
        self.truncated_texts = 0

    @cached_property
    def image_session(self) -> Session:
        return self.open_session("image")

    @cached_property
    def text_session(self) -> Session:
        return self.open_session("text")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        spec = self.about.tokenizer
        if spec.kind == "clip":
            return BpeTokenizer(spec.context_length)
        from clip_retrieval.encoder.huggingface_tokenizer import HuggingfaceTokenizer

        return HuggingfaceTokenizer(self.folder, spec)

    def open_text_side(self) -> None:
        """Open the graph while the vocabulary is read: neither waits for the other, and a first text is out sooner."""
        if {"text_session", "tokenizer"} & vars(self).keys():
            return

        def open_graph() -> None:
            with suppress(EncoderError):  # raised again, and seen then, where the session is used
                _ = self.text_session

        opening = Thread(target=open_graph)
        opening.start()
        _ = self.tokenizer
        opening.join()

    def open_session(self, tower: str) -> Session:
        check_tower(self.info, tower)
        path = self.folder / GRAPHS[tower]
        session = open_session(path, self.runtime, self.info.precision, self.about.block_size, is_bulk=self.is_bulk)

        def run(batch: NDArray[Any]) -> NDArray[np.float32]:
            rows = session(batch)
            if rows.shape != (len(batch), self.info.dimension):
                raise EncoderError(
                    f"{path} gives embeddings of {list(rows.shape)}, not [{len(batch)}, {self.info.dimension}] as its "
                    "model.json says; convert the model again"
                )
            return rows

        return run

    def encode_images(self, pixels: Pixels) -> Embeddings:
        rows = np.empty((len(pixels), self.info.dimension), dtype=np.float32)
        for start in range(0, len(pixels), GROUP_SIZE):
            group = slice(start, start + GROUP_SIZE)
            rows[group] = self.image_session(np.ascontiguousarray(pixels[group]))
        return normalise(rows)

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        check_tower(self.info, "text")
        check_texts(texts)
        self.open_text_side()
        tokens, truncated = self.tokenizer.tokenize(texts)
        self.truncated_texts += truncated
        return self.encode_tokens(tokens)

    def encode_tokens(self, tokens: Tokens) -> Embeddings:
        """Encode texts of like length together, without the padding that all of them share."""
        tokens = np.asarray(tokens, dtype=np.int32)
        rows = np.empty((len(tokens), self.info.dimension), dtype=np.float32)
        for group, length in self.group_by_length(tokens):
            rows[group] = self.text_session(np.ascontiguousarray(tokens[group, :length]))
        return normalise(rows)

    def group_by_length(self, tokens: Tokens) -> Iterator[tuple[NDArray[Any], int]]:
        """Yield row numbers and the length that they need."""
        context = tokens.shape[1]
        lengths = np.full(len(tokens), context)
        if self.about.tokenizer.is_cut:
            is_text = tokens != self.about.tokenizer.pad_id
            lengths = context - is_text[:, ::-1].argmax(axis=1)
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), GROUP_SIZE):
            group = order[start : start + GROUP_SIZE]
            yield group, int(lengths[group[-1]])
