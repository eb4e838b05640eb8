"""An ONNX graph to a function from batches of its one input to its one output, on ONNX Runtime or OpenVINO."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.errors import EncoderError, first_line
from clip_retrieval.resources import count_cores

Runtime = Literal["onnxruntime", "openvino"]
Session = Callable[[Sequence[NDArray[Any]]], list[NDArray[np.float32]]]  # one result for each batch, in order

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
    if not is_installed("openvino"):
        raise EncoderError("OpenVINO is not installed; pip install openvino, or leave runtime= out")
    import openvino

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

    def run(batches: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
        found: list[Any] = [None] * len(batches)

        def keep(request: Any, place: int) -> None:
            found[place] = request.get_output_tensor(0).data.copy()  # the request writes its next result there

        queue.set_callback(keep)
        try:
            for place, batch in enumerate(batches):
                queue.start_async([batch], place)
            queue.wait_all()
        except RuntimeError as error:
            raise EncoderError(f"{path} cannot encode this: {first_line(error)}") from error
        return found

    return run
