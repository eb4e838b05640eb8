"""An ONNX graph to a function from its one input to its one output, on ONNX Runtime or OpenVINO."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.errors import EncoderError, first_line
from clip_retrieval.resources import count_cores

Runtime = Literal["onnxruntime", "openvino"]
Session = Callable[[NDArray[Any]], NDArray[np.float32]]

LEAST_PART = 8  # items that are worth a core of their own

RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino")


def open_session(path: Path, runtime: Runtime, precision: str, block_size: int, *, is_bulk: bool) -> Session:
    """Open a graph on all cores of this process; raises EncoderError where the runtime cannot.

    `block_size` is how many values of a quantised matrix share a scale, 0 where none is quantised: OpenVINO then
    quantises what it multiplies them with in the same blocks, and computes in int8. For bulk work each core
    gets a part of each batch.
    """
    match runtime:
        case "onnxruntime":
            return open_onnxruntime(path)
        case "openvino":
            return open_openvino(path, precision, block_size, is_bulk=is_bulk)
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

    def run(batch: NDArray[Any]) -> NDArray[np.float32]:
        try:
            rows: NDArray[np.float32] = session.run(None, {name: batch})[0]
        except Exception as error:  # as above
            raise EncoderError(f"{path} cannot encode this: {first_line(error)}") from error
        return rows

    return run


def open_openvino(path: Path, precision: str, block_size: int, *, is_bulk: bool) -> Session:
    if not is_installed("openvino"):
        raise EncoderError("OpenVINO is not installed; pip install 'clip-retrieval[openvino]', or leave runtime= out")
    import openvino

    streams = count_cores() if is_bulk else 1  # batches side by side, a core each, or all cores on one
    options = {
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": count_cores(),
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}[precision],
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": block_size,
    }
    try:
        compiled = openvino.Core().compile_model(str(path), "CPU", options)
    except RuntimeError as error:
        raise EncoderError(f"{path} cannot be opened by OpenVINO: {first_line(error)}") from error
    queue = openvino.AsyncInferQueue(compiled, streams)

    def run(batch: NDArray[Any]) -> NDArray[np.float32]:
        parts = np.array_split(batch, streams) if len(batch) >= streams * LEAST_PART else [batch]
        found: list[Any] = [None] * len(parts)

        def keep(request: Any, place: int) -> None:
            found[place] = request.get_output_tensor(0).data.copy()  # the request writes its next result there

        queue.set_callback(keep)
        try:
            for place, part in enumerate(parts):
                queue.start_async([np.ascontiguousarray(part)], place)
            queue.wait_all()
        except RuntimeError as error:
            raise EncoderError(f"{path} cannot encode this: {first_line(error)}") from error
        rows: NDArray[np.float32] = np.concatenate(found)
        return rows

    return run


def supports_bf16() -> bool:
    """Tell whether OpenVINO computes in bfloat16 on this CPU."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
