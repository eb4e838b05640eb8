"""An ONNX graph to a function from batches of its one input to its one output, on ONNX Runtime or OpenVINO."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, assert_never

import msgspec
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.errors import EncoderError, first_line, one_line
from clip_retrieval.installed import is_installed
from clip_retrieval.process.resources import count_cores

Runtime = Literal["onnxruntime", "openvino"]
Results = Callable[[], list[NDArray[np.float32]]]  # waits for one result for each batch, in order

SOURCE_LINES = ("Exception from ", "Check '")
MOST_COPIES = 8  # most copies of a quantized model, which bounds memory on many cores

RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino")


class Session(Protocol):
    """A graph that is open. One thread at a time may use it."""

    def start(self, batches: Sequence[NDArray[Any]]) -> Results:
        """Start to encode batches; more may be started before the results are requested."""
        ...


class Way(msgspec.Struct, frozen=True):
    """How a graph is to be run.

    `block_size` is how many values of a quantized matrix share a scale, 0 if none is quantized: OpenVINO then
    quantizes the other factor in the same blocks, and computes in int8. `streams` batches are computed at once, each
    on its share of the cores. With `is_once`, a graph is opened in less time, and runs slower.
    """

    runtime: Runtime
    precision: str
    block_size: int = 0
    streams: int = 1
    is_once: bool = False


def open_session(path: Path, way: Way) -> Session:
    """Open a graph on all cores of this process; raises EncoderError if the runtime cannot."""
    match way.runtime:
        case "onnxruntime":
            return open_onnxruntime(path, way)
        case "openvino":
            return open_openvino(path, way)
        case _:
            assert_never(way.runtime)


def import_runtime(runtime: Runtime) -> Any:
    """Import a runtime without its telemetry, which both otherwise send to their makers without asking.

    ONNX Runtime reads the variable when it is loaded; OpenVINO uses a stub if `openvino_telemetry` is missing.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    is_first = "openvino_telemetry" not in sys.modules
    if is_first:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # as Python's import takes it
    try:
        return importlib.import_module(runtime)
    finally:
        if is_first:
            sys.modules.pop("openvino_telemetry", None)


class OnnxruntimeSession:
    """Runs each batch in `start`."""

    def __init__(self, path: Path, session: Any) -> None:
        self.path, self.session = path, session
        self.name = session.get_inputs()[0].name

    def start(self, batches: Sequence[NDArray[Any]]) -> Results:
        try:
            found = [self.session.run(None, {self.name: batch})[0] for batch in batches]
        except Exception as error:  # its errors have no common base but Exception
            raise EncoderError(f"{self.path} cannot encode this: {first_line(error)}") from error
        return lambda: found


def open_onnxruntime(path: Path, way: Way) -> Session:
    onnxruntime = import_runtime("onnxruntime")
    options = session_options(onnxruntime)
    packed = place_packed(path, onnxruntime)
    is_packed = packed.exists()
    if way.is_once:  # its idle threads spin for tens of ms, on cores that import what comes next
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if (
        way.is_once and not way.block_size and not is_packed
    ):  # repacking matrices takes longer than a few batches gain by it
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        opened = str(packed if is_packed else path)
        session = onnxruntime.InferenceSession(opened, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise EncoderError(f"{opened} cannot be opened by ONNX Runtime: {first_line(error)}") from error
    return OnnxruntimeSession(path, session)


def session_options(onnxruntime: Any) -> Any:
    """Return options for all cores of this process, which log errors only."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = count_cores()
    options.log_severity_level = 3
    return options


def place_packed(path: Path, onnxruntime: Any) -> Path:
    """Return the place of a graph packed by this version of ONNX Runtime; other versions have other graphs."""
    return path.with_suffix(f".onnxruntime-{onnxruntime.__version__}{path.suffix}")


def write_packed(path: Path) -> None:
    """Write a graph again next to itself: optimized, with its matrices also packed for this CPU, to be mapped.

    A CPU that needs another layout repacks them when it opens the file, as without it. Raises EncoderError.
    """
    onnxruntime = import_runtime("onnxruntime")
    packed = place_packed(path, onnxruntime)
    options = session_options(onnxruntime)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED  # the same on every CPU
    options.optimized_model_filepath = str(packed)
    for name, value in (
        ("optimized_model_external_initializers_file_name", f"{packed.name}.data"),
        ("optimized_model_external_initializers_min_size_in_bytes", "1024"),
        ("save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(f"session.{name}", value)
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise EncoderError(f"{path} cannot be packed by ONNX Runtime: {first_line(error)}") from error


class Ticket:
    """The result of one batch, as soon as somebody has fetched it."""

    rows: NDArray[np.float32] | None = None


class OpenvinoSession:
    """Several requests that work in parallel, used in turn.

    One thread makes all calls of OpenVINO's Python: two threads may wait for each other forever.
    """

    def __init__(self, path: Path, requests: Sequence[Any]) -> None:
        self.path, self.requests = path, requests
        self.held: list[Ticket | None] = [None] * len(requests)  # owner of each request's result
        self.count = 0

    def start(self, batches: Sequence[NDArray[Any]]) -> Results:
        with self.explaining():
            started = [self.start_one(batch) for batch in batches]

        def results() -> list[NDArray[np.float32]]:
            with self.explaining():
                return [self.fetch(number, ticket) for number, ticket in started]

        return results

    def start_one(self, batch: NDArray[Any]) -> tuple[int, Ticket]:
        number = self.count % len(self.requests)
        self.count += 1
        self.collect(number)
        self.requests[number].start_async([batch])
        ticket = self.held[number] = Ticket()
        return number, ticket

    def fetch(self, number: int, ticket: Ticket) -> NDArray[np.float32]:
        if ticket.rows is None:
            self.collect(number)
        assert ticket.rows is not None
        return ticket.rows

    def collect(self, number: int) -> None:
        """Wait for a request, and keep its result: its next result overwrites it."""
        ticket, self.held[number] = self.held[number], None
        if ticket is not None:
            self.requests[number].wait()
            ticket.rows = self.requests[number].get_output_tensor(0).data.copy()

    @contextmanager
    def explaining(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise EncoderError(f"{self.path} cannot encode this: {cause_of(error)}") from error


def cause_of(error: RuntimeError) -> str:
    """Return the last line of OpenVINO's message; the lines before it name places in its source."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith(SOURCE_LINES)]
    return one_line(lines[-1]).rstrip(".") if lines else first_line(error)


def open_openvino(path: Path, way: Way) -> Session:
    """Open a graph on OpenVINO.

    Its streams share packed weights, and now and then mix up quantized ones: then all embeddings are wrong. So each
    stream of a quantized graph is a separate model.
    """
    if not is_installed("openvino"):
        raise EncoderError("OpenVINO is not installed; pip install openvino, or leave runtime= out")
    openvino = import_runtime("openvino")
    copies = min(way.streams, MOST_COPIES) if way.block_size else 1
    options = {
        "NUM_STREAMS": 1 if way.block_size else way.streams,
        "INFERENCE_NUM_THREADS": max(1, count_cores() // copies),
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}[way.precision],
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": way.block_size,
        "ENABLE_CPU_PINNING": copies == 1,  # each copy would choose the same cores
    }
    try:
        core = openvino.Core()
        models = [core.compile_model(str(path), "CPU", options) for _ in range(copies)]
    except RuntimeError as error:
        raise EncoderError(f"{path} cannot be opened by OpenVINO: {cause_of(error)}") from error
    return OpenvinoSession(path, [model.create_infer_request() for model in models * (way.streams // copies)])
