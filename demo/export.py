"""Write the embedded model's ONNX form beside its weights: graphs that take their weights out of the safetensors file.

    python demo/export.py

A graph may name any file as the place of its weights. So the weights are shipped once, in open_clip's file, and the
graphs turn them as they need them when they are opened. What is computed from weights (the queries' matrices, which
have the scale of the scores in them) lies in small files of its own.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from clip_retrieval.encoder.export.config import ConvertConfig
from clip_retrieval.encoder.export.convert import run_convert
from clip_retrieval.encoder.formats.onnx_folder import GRAPHS, read_about, write_about
from clip_retrieval.encoder.formats.safetensors import read_header, read_one
from clip_retrieval.encoder.load import load_encoder

MODEL = Path(__file__).parent.parent / "clip_retrieval" / "demo" / "model"
WEIGHTS = "open_clip_model.safetensors"
LEAST_VALUES = 256  # smaller ones are kept in the graph


class Shared:
    """The tensors of the weights' file, and where each lies."""

    def __init__(self, path: Path) -> None:
        self.header, self.start = read_header(path)
        self.tensors = {name: np.asarray(array) for name, array in read_one(path).items()}

    def find(self, array: NDArray[Any]) -> tuple[str, list[int] | None] | None:
        """Return the tensor that has these values, and how its axes must be turned to be the array."""
        for name, tensor in self.tensors.items():
            if tensor.size != array.size or array.ndim != tensor.ndim:
                continue
            for axes in (None, [1, 0]) if array.ndim == 2 else (None,):
                turned = tensor if axes is None else tensor.transpose(axes)
                if turned.shape == array.shape and np.array_equal(turned.astype(np.float32), array):
                    return name, axes
        return None

    def refer(self, name: str) -> TensorProto:
        entry = self.header[name]
        dtype = {"F16": TensorProto.FLOAT16, "F32": TensorProto.FLOAT}[entry["dtype"]]
        tensor = TensorProto(
            name=f"shared.{name}", dims=entry["shape"], data_type=dtype, data_location=TensorProto.EXTERNAL
        )
        begin, end = entry["data_offsets"]
        place = {"location": WEIGHTS, "offset": self.start + begin, "length": end - begin}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor


def share(path: Path, shared: Shared) -> onnx.ModelProto:
    """Return the graph with its weights taken from the shared file wherever they are there."""
    model = onnx.load(path)
    tables = {node.input[0]: node for node in model.graph.node if node.op_type == "Gather"}
    kept, referred, turning = [], {}, []
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        found = shared.find(array) if array.dtype == np.float32 and array.size >= LEAST_VALUES else None
        if found is None:
            kept.append(numpy_helper.from_array(array, tensor.name))
            continue
        name, axes = found
        referred[name] = shared.refer(name)
        if tensor.name in tables and axes is None:  # rows are looked up first: the table itself never becomes float32
            lookup = tables[tensor.name]
            wanted = lookup.output[0]
            lookup.input[0], lookup.output[0] = f"shared.{name}", f"{wanted}.stored"
            at = list(model.graph.node).index(lookup)
            model.graph.node.insert(
                at + 1, helper.make_node("Cast", [f"{wanted}.stored"], [wanted], f"{wanted}.cast", to=TensorProto.FLOAT)
            )
            continue
        made = f"{tensor.name}.stored" if axes else tensor.name
        turning.append(
            helper.make_node("Cast", [f"shared.{name}"], [made], f"{tensor.name}.cast", to=TensorProto.FLOAT)
        )
        if axes:
            turning.append(helper.make_node("Transpose", [made], [tensor.name], f"{tensor.name}.turn", perm=axes))
    nodes = [*turning, *model.graph.node]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([*kept, *referred.values()])
    return model


def main() -> None:
    shared = Shared(MODEL / WEIGHTS)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "demo"
        source = f"open_clip:local-dir:{MODEL}"
        print(run_convert(ConvertConfig(source=source, out=str(out), to="onnx")))
        for graph in GRAPHS.values():
            model = share(out / graph, shared)
            (MODEL / graph).write_bytes(model.SerializeToString())
            print(f"{graph}: {(MODEL / graph).stat().st_size / 1e3:.0f} kB")
        write_about(MODEL, dataclasses.replace(read_about(out), source="demo"))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    texts = ["a dog", "pizza", "red heart"]
    torch, light = (load_encoder(uri) for uri in (source, f"onnx:{MODEL}?runtime=onnxruntime"))
    for name, rows, others in (
        ("image", torch.encode_images(pixels), light.encode_images(pixels)),
        ("text", torch.encode_texts(texts), light.encode_texts(texts)),
    ):
        print(f"{name}: least cosine to torch {(rows * others).sum(axis=1).min():.7f}")


if __name__ == "__main__":
    main()
