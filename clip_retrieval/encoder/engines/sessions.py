"""An ONNX graph to a function from batches of its one input to its one output, on ONNX Runtime or OpenVINO."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.errors import EncoderError, first_line
from clip_retrieval.resources import count_cores

Runtime = Literal["onnxruntime", "openvino"]
Session = Callable[[Sequence[NDArray[Any]]], list[NDArray[np.float32]]]  # one result for each batch, in order

MOST_COPIES = 8  # of a quantised model, so that memory stays small on many cores

RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino")


def open_session(path: Path, runtime: Runtime, precision: str, block_size: int, *, streams: int) -> Session:
    """Open a graph on all cores of this process; raises EncoderError where the runtime cannot.

    `block_size` is how many values of a quantised matrix share a scale, 0 where none is quantised: OpenVINO then
    quantises what it multiplies them with in the same blocks, and computes in int8. `streams` batches are
    under way at once, each on its share of the cores.
    """
    match runtime:
        case "onnxruntime":
            return open_onnxruntime(path)
        case "openvino":
            return open_openvino(path, precision, block_size, streams=streams)
        case _:
            assert_never(runtime)


def is_installed(runtime: Runtime) -> bool:
    return importlib.util.find_spec(runtime) is not None


def open_onnxruntime(path: Path) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = count_cores()
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base but Exception
        raise EncoderError(f"{path} cannot be opened by ONNX Runtime: {first_line(error)}") from error
    name = session.get_inputs()[0].name

    def run(batches: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
        try:
            return [session.run(None, {name: batch})[0] for batch in batches]
        except Exception as error:  # as above
            raise EncoderError(f"{path} cannot encode this: {first_line(error)}") from error

    return run


def open_openvino(path: Path, precision: str, block_size: int, *, streams: int) -> Session:
    """Open a graph on OpenVINO. One thread does all that goes through its Python: two may wait for each other for ever.

    Streams share what they pack of the weights, and now and then mix quantised ones up: the embeddings are wrong then,
    from the first to the last. So each stream of a quantised graph is a model of its own.
    """
    if not is_installed("openvino"):
        raise EncoderError("OpenVINO is not installed; pip install openvino, or leave runtime= out")
    import openvino

    copies = min(streams, MOST_COPIES) if block_size else 1
    options = {
        "NUM_STREAMS": 1 if block_size else streams,
        "INFERENCE_NUM_THREADS": max(1, count_cores() // copies),
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}[precision],
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": block_size,
        "ENABLE_CPU_PINNING": copies == 1,  # each copy would choose the same cores
    }
    try:
        core = openvino.Core()
        models = [core.compile_model(str(path), "CPU", options) for _ in range(copies)]
    except RuntimeError as error:
        raise EncoderError(f"{path} cannot be opened by OpenVINO: {first_line(error)}") from error
    requests = [model.create_infer_request() for model in models * (streams // copies)]

    def run(batches: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
        try:
            return list(in_turn(requests, batches))
        except RuntimeError as error:
            raise EncoderError(f"{path} cannot encode this: {first_line(error)}") from error

    return run


def in_turn(requests: Sequence[Any], batches: Sequence[NDArray[Any]]) -> Iterator[NDArray[np.float32]]:
    """Yield the result of each batch; as many are under way as there are requests."""
    count = len(requests)
    for place in range(len(batches) + count):
        request = requests[place % count]
        if 0 <= place - count < len(batches):
            request.wait()
            yield request.get_output_tensor(0).data.copy()  # the request writes its next result there
        if place < len(batches):
            request.start_async([batches[place]])
