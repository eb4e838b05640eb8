"""Folders of ONNX graphs on a light runtime: neither torch nor transformers is loaded, weights stay mapped files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.encoder.base import (
    Embeddings,
    EncoderInfo,
    EncodesTexts,
    Pixels,
    TextEmbeddings,
    Tokens,
    Workload,
    check_texts,
    check_tower,
)
from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.engines.sessions import (
    OnnxruntimeSession,
    Results,
    Runtime,
    Session,
    Way,
    import_runtime,
    open_session,
)
from clip_retrieval.encoder.formats.onnx_folder import AGAIN, GRAPHS, OnnxFolder, read_about, read_vocabulary
from clip_retrieval.encoder.formats.onnx_sums import find_damage
from clip_retrieval.encoder.precision import cpu_precisions
from clip_retrieval.encoder.tokenizer import BpeTokenizer
from clip_retrieval.encoder.uri import ModelName
from clip_retrieval.errors import EncoderError
from clip_retrieval.git_lfs import explaining_pointers
from clip_retrieval.installed import is_installed
from clip_retrieval.process.resources import count_cores

logger = logging.getLogger(__name__)

IMAGES_AT_ONCE = 64  # images per request; more do not fit into the CPU caches
TOKENS_AT_ONCE = 1024


Remake = Callable[[str], Path]  # takes the damage of a folder in our cache, makes it again, and returns it


def open_onnx(name: ModelName, config: EncoderConfig, workload: Workload, remake: Remake | None = None) -> OnnxEncoder:
    """Read what the folder holds; its graphs are opened when they are first used.

    Raises EncoderError for a damaged folder. A folder in our cache, which was checked, is made again with `remake`.
    """
    folder = Path(name.architecture)
    about = read_about(folder)
    if remake is None and (damage := find_damage(folder, (), is_own=False)):
        raise EncoderError(f"{damage}; {AGAIN}")
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
        no_text_reason=about.no_text_reason,
        logit_scale=about.logit_scale,
        logit_bias=about.logit_bias,
        vocabulary=read_vocabulary(folder),
    )
    # Bulk work encodes several batches at once, each on one core; a query gets all cores.
    streams = count_cores() if workload == "bulk" and runtime == "openvino" else 1
    way = Way(runtime, info.precision, about.block_size, streams, is_once=workload == "once")
    return OnnxEncoder(folder, about, info, way, remake)


def choose_runtime(name: ModelName, workload: Workload) -> Runtime:
    """Return the runtime that is named; else OpenVINO only for much work, since it takes twice as long to open."""
    if name.weights is not None:
        return "openvino" if name.weights == "openvino" else "onnxruntime"
    return "openvino" if workload == "bulk" and is_installed("openvino") else "onnxruntime"


def choose_precision(name: ModelName, config: EncoderConfig, runtime: Runtime) -> str:
    """Return the number format of the computation; OpenVINO's bfloat16 is exact enough, and fast if the CPU has it."""
    if config.precision == "auto":
        return "bf16" if runtime == "openvino" and "bf16" in cpu_precisions() else "fp32"
    if config.precision == "int8":
        raise EncoderError(
            f"{name.uri} holds weights that are not quantized: make an int8 folder of it with clip-retrieval quantize"
        )
    if runtime == "onnxruntime" and config.precision != "fp32":
        raise EncoderError(f"{name.uri}: ONNX Runtime computes in fp32 here; bf16 needs OpenVINO (runtime=openvino)")
    return config.precision


class Tokenizer(Protocol):
    def tokenize(self, texts: Sequence[str]) -> tuple[Tokens, int]:
        """Return the ids, and how many texts were cut."""
        ...


class OnnxEncoder(EncodesTexts):
    """visual.onnx and textual.onnx of one folder."""

    def __init__(self, folder: Path, about: OnnxFolder, info: EncoderInfo, way: Way, remake: Remake | None) -> None:
        self.folder, self.about, self.info, self.way, self.remake = folder, about, info, way, remake
        self.sessions: dict[str, Session] = {}
        self.locks = {tower: Lock() for tower in GRAPHS}
        self.opening: list[Thread] = []
        self.ahead: dict[str, TextEmbeddings] = {}  # embedded in advance; each is returned once

    @property
    def image_session(self) -> Session:
        return self.take_session("image")

    @property
    def text_session(self) -> Session:
        return self.take_session("text")

    def take_session(self, tower: str) -> Session:
        """Return the graph of a tower, opened once.

        No cached_property: that of Python 3.11 has one lock for all encoders, and while a damaged model is made again
        here, another encoder tries it out on another thread.
        """
        with self.locks[tower]:
            if tower not in self.sessions:
                self.sessions[tower] = self.open_session(tower)
            return self.sessions[tower]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        spec = self.about.tokenizer
        if spec.kind == "clip":
            return BpeTokenizer(spec.context_length)
        from clip_retrieval.encoder.huggingface_tokenizer import HuggingfaceTokenizer

        with explaining_pointers(self.folder, EncoderError):
            return HuggingfaceTokenizer(self.folder, spec)

    def open_image_side(self) -> Session:
        """Return the graph of pictures, which this opens before the first pictures come."""
        return self.image_session

    def start_text_side(self, texts: Sequence[str] = ()) -> None:
        """Open the graph while the vocabulary is read, then embed the texts: neither waits for the other."""
        if self.opening or "text" in self.sessions or "tokenizer" in vars(self):
            return
        with suppress(ImportError):  # reported when a session is opened
            import_runtime(self.way.runtime)  # here, because threads that import at once get in each other's way

        def open_part(name: str) -> None:
            with suppress(Exception):  # raised again when the part is used; a thread would print it
                getattr(self, name)

        parts = [Thread(target=open_part, args=[name]) for name in ("text_session", "tokenizer")]

        def embed_ahead() -> None:
            for part in parts:
                part.join()
            with suppress(Exception):  # as above
                for text in texts:
                    self.ahead[text] = self.embed_now([text])

        self.opening = [*parts, *([Thread(target=embed_ahead)] if texts else [])]
        for thread in self.opening:
            thread.start()

    def wait_for_text_side(self) -> None:
        self.start_text_side()
        for thread in self.opening:
            thread.join()

    def open_session(self, tower: str) -> Session:
        check_tower(self.info, tower)
        with explaining_pointers(self.folder, EncoderError):
            self.check_files(tower)
            path = self.folder / GRAPHS[tower]
            return CheckedSession(open_session(path, self.way), path, self.info.dimension, self.way)

    def check_files(self, tower: str) -> None:
        """Make a damaged graph again, or raise EncoderError if it is not ours."""
        damage = find_damage(self.folder, [tower], is_own=self.remake is not None)
        if damage is None:
            return
        if self.remake is None:
            raise EncoderError(f"{damage}; {AGAIN}")
        self.folder = self.remake(damage)

    def encode_images(self, pixels: Pixels) -> Embeddings:
        return self.start_images(pixels)()

    def start_images(self, pixels: Pixels) -> Callable[[], Embeddings]:
        if not len(pixels):
            return lambda: np.zeros((0, self.info.dimension), dtype=np.float32)
        count = self.count_parts(len(pixels), IMAGES_AT_ONCE)
        results = self.image_session.start(np.array_split(np.ascontiguousarray(pixels), count))
        return lambda: self.finish(np.concatenate(results()))

    def count_parts(self, item_count: int, at_once: int) -> int:
        """Return into how many parts a batch is cut: small enough for the caches, the same number for each stream."""
        rounds = -(-item_count // (at_once * self.way.streams))
        return min(item_count, rounds * self.way.streams)

    def embed_texts(self, texts: Sequence[str]) -> TextEmbeddings:
        check_tower(self.info, "text")
        check_texts(texts)
        self.wait_for_text_side()
        embedded = self.ahead.pop(texts[0], None) if len(texts) == 1 and not self.is_raw else None
        return self.embed_now(texts) if embedded is None else embedded

    def embed_now(self, texts: Sequence[str]) -> TextEmbeddings:
        tokens, truncated_count = self.tokenizer.tokenize(texts)
        return TextEmbeddings(self.encode_tokens(tokens), truncated_count)

    def encode_tokens(self, tokens: Tokens) -> Embeddings:
        """Encode texts of similar length together, without the padding that all of them share."""
        tokens = np.asarray(tokens, dtype=np.int32)
        rows = np.empty((len(tokens), self.info.dimension), dtype=np.float32)
        groups = list(self.group_by_length(tokens))
        results = self.text_session.start([np.ascontiguousarray(tokens[group, :length]) for group, length in groups])
        for (group, _), part in zip(groups, results(), strict=True):
            rows[group] = part
        return self.finish(rows)

    def group_by_length(self, tokens: Tokens) -> Iterator[tuple[NDArray[Any], int]]:
        """Yield row numbers and the length that they need; the longest first, so no stream ends with a long one."""
        context = tokens.shape[1]
        lengths = np.full(len(tokens), context)
        if self.about.tokenizer.is_cut:
            is_text = tokens != self.about.tokenizer.pad_id
            lengths = context - is_text[:, ::-1].argmax(axis=1)
        order = np.argsort(-lengths, kind="stable")
        at_once = max(1, -(-len(order) // self.way.streams))  # a core for each part of a small batch
        start = 0
        while start < len(order):
            length = int(lengths[order[start]])
            group = order[start : start + max(1, min(at_once, TOKENS_AT_ONCE // length))]
            yield group, length
            start += len(group)


class CheckedSession(msgspec.Struct):
    """A session whose results are checked: the shape that its folder says, and no NaN.

    OpenVINO has given NaN for a graph that ONNX Runtime encodes well. ONNX Runtime then encodes the batch again, and
    all that come after it.
    """

    session: Session
    path: Path
    dimension: int
    way: Way

    def start(self, batches: Sequence[NDArray[Any]]) -> Results:
        results = self.session.start(batches)

        def checked() -> list[NDArray[np.float32]]:
            found = results()
            for rows, batch in zip(found, batches, strict=True):
                if rows.shape != (len(batch), self.dimension):
                    raise EncoderError(
                        f"{self.path} gives embeddings of {list(rows.shape)}, not [{len(batch)}, {self.dimension}] as "
                        "its model.json says; convert the model again"
                    )
            return found if self.way.runtime == "onnxruntime" or are_finite(found) else self.encode_again(batches)

        return checked

    def encode_again(self, batches: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
        """Encode batches on ONNX Runtime, and stay there if it gives numbers."""
        way = msgspec.structs.replace(self.way, runtime="onnxruntime", precision="fp32", streams=1)
        was_replaced = isinstance(self.session, OnnxruntimeSession)  # by an earlier batch, while this one was computed
        session = self.session if was_replaced else open_session(self.path, way)
        found = session.start(batches)()
        if not was_replaced and are_finite(found):
            logger.warning(
                "%s: OpenVINO gives embeddings that are not numbers (NaN or infinite), and ONNX Runtime does not; "
                "ONNX Runtime encodes from now on, which takes longer",
                self.path,
            )
            self.session = session
        return found


def are_finite(found: Sequence[NDArray[np.float32]]) -> bool:
    return all(np.isfinite(rows).all() for rows in found)
