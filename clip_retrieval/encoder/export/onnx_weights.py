"""An ONNX graph to one with weights in 8 or 4 bits: at most half the file size, and faster on most CPUs.

Matrix products become ONNX Runtime's MatMulNBits, which OpenVINO reads too; both quantize the other factor by blocks
while they compute. Token tables are looked up as they are stored, and only the rows that are found become float.
Kernels of convolutions are always stored in 8 bits, and computed with in float.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from clip_retrieval.encoder.export.blocks import LEAST_HALF, Bits, pack, quantize_rows
from clip_retrieval.encoder.export.config import OnnxType
from clip_retrieval.encoder.export.graph import CONTRIB, Graph
from clip_retrieval.encoder.formats.onnx_folder import (
    GRAPHS,
    TOKENIZER,
    VOCABULARY,
    OnnxFolder,
    read_about,
    write_about,
)
from clip_retrieval.encoder.formats.onnx_sums import write_sums
from clip_retrieval.errors import EncoderError
from clip_retrieval.storage import made_whole

FORMS: Mapping[OnnxType, Bits] = {"int8": Bits(8, 256), "int4": Bits(4, 32)}
PATCHES = "visual.conv1.weight"  # at least 8 bits: the matrix is small, and its errors reach all layers
TABLE_FORMS: Mapping[OnnxType, Bits] = {"int8": Bits(8, 128), "int4": Bits(4, 32)}
LEAST_VALUES = 4096  # a matrix with fewer is not quantized
ACCURACY_LEVEL = 4  # MatMulNBits attribute: compute in int8

Array = NDArray[Any]


class Rewriter:
    """Copies the nodes of a graph into a new one, those with large matrices in their quantized form."""

    def __init__(self, source: Path, graph: Graph, kind: OnnxType) -> None:
        try:
            self.model = onnx.load(source, load_external_data=False)
        except Exception as error:  # protobuf's error is not a public class
            raise EncoderError(f"{source} is not a readable ONNX graph; convert the model again") from error
        self.folder, self.graph = source.parent, graph
        self.form, self.table_form = FORMS[kind], TABLE_FORMS[kind]
        self.block_sizes: set[int] = set()  # block sizes of rewritten products
        self.tensors = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.casts = {
            node.output[0]: node.input[0]
            for node in self.model.graph.node
            if node.op_type == "Cast" and node.input[0] in self.tensors
        }
        self.ranks = find_ranks(self.model)

    def run(self) -> None:
        for node in self.model.graph.node:
            if not self.rewrite(node):
                self.graph.nodes.append(node)
        needed = {name for node in self.graph.nodes for name in node.input}
        self.graph.nodes = [node for node in self.graph.nodes if node.op_type != "Cast" or node.output[0] in needed]
        needed = {name for node in self.graph.nodes for name in node.input}
        for name in self.tensors:
            if name in needed:
                self.graph.constant(name, self.read(name))

    def rewrite(self, node: onnx.NodeProto) -> bool:
        """Add the replacement of this node; return False if it stays unchanged."""
        match node.op_type:
            case "MatMul":
                return self.rewrite_product(node, node.input[1], is_turned=False)
            case "Gemm":
                settings = {one.name: helper.get_attribute_value(one) for one in node.attribute}
                is_plain = settings.get("alpha", 1) == settings.get("beta", 1) == 1 and not settings.get("transA", 0)
                return is_plain and self.rewrite_product(node, node.input[1], is_turned=bool(settings.get("transB", 0)))
            case "Gather":
                return self.rewrite_lookup(node)
            case "Conv":
                return self.rewrite_convolution(node)
            case _:
                return False

    def rewrite_product(self, node: onnx.NodeProto, name: str, *, is_turned: bool) -> bool:
        matrix = self.find_matrix(name)
        if matrix is None:
            return False
        rows = matrix if is_turned else np.ascontiguousarray(matrix.T)  # [out, in]
        form = (FORMS["int8"] if self.tensor_name(name) == PATCHES else self.form).fit(rows.shape[1])
        self.block_sizes.add(form.block_size)
        q, scales = quantize_rows(rows, form)
        name = self.tensor_name(name)
        product = self.graph.add(
            "MatMulNBits",
            node.input[0],
            self.graph.constant(f"{name}.q", pack(q, form)),
            self.add_scales(f"{name}.scales", scales.reshape(-1)),
            domain=CONTRIB,
            K=rows.shape[1],
            N=rows.shape[0],
            bits=form.bits,
            block_size=form.block_size,
            accuracy_level=ACCURACY_LEVEL,
        )
        if node.op_type == "Gemm" and len(node.input) > 2:
            product = self.graph.add("Add", product, node.input[2])
        self.rename(product, node.output[0])
        return True

    def add_scales(self, name: str, scales: Array) -> str:
        """Add the scales of a product: as float16 if there are many, and none is too small for it."""
        least = np.abs(scales[scales != 0]).min(initial=1)
        if self.form.bits == 8 or least < LEAST_HALF:
            return self.graph.constant(name, scales)
        return self.graph.to_float(self.graph.constant(name, scales.astype(np.float16)))

    def rewrite_lookup(self, node: onnx.NodeProto) -> bool:
        """Look up q and scales by the same ids, and multiply; only operators that every runtime has."""
        table = self.find_matrix(node.input[0])
        axis = next((one.i for one in node.attribute if one.name == "axis"), 0)
        if table is None or axis != 0:
            return False
        graph, form, ids = self.graph, self.table_form.fit(table.shape[1]), node.input[1]
        q, scales = quantize_rows(table, form)
        name = self.tensor_name(node.input[0])
        packed = pack(q, form).reshape(len(q), -1)
        kept = [0] * self.ranks.get(ids, 2)  # Reshape takes 0 for an unchanged axis
        found = graph.add("Gather", graph.constant(f"{name}.q", packed), ids)
        if form.bits == 4:
            low = graph.add("BitwiseAnd", found, graph.constant("low_half", np.array(15, dtype=np.uint8)))
            high = graph.add(
                "BitShift", found, graph.constant("half_byte", np.array(4, dtype=np.uint8)), direction="RIGHT"
            )
            halves = [graph.add("Unsqueeze", half, graph.integers(-1)) for half in (low, high)]
            found = graph.add("Concat", *halves, axis=-1)
        blocks = graph.add("Reshape", graph.to_float(found), graph.integers(*kept, -1, form.block_size))
        centered = graph.add("Sub", blocks, graph.number(form.middle))
        scale = graph.to_float(graph.add("Gather", graph.constant(f"{name}.scales", scales.astype(np.float16)), ids))
        scaled = graph.add("Mul", centered, graph.add("Unsqueeze", scale, graph.integers(-1)))
        whole = graph.add("Reshape", scaled, graph.integers(*kept, -1))
        if q.shape[1] * form.block_size != table.shape[1]:
            whole = graph.add("Slice", whole, *(graph.integers(i) for i in (0, table.shape[1], len(kept))))
        self.rename(whole, node.output[0])
        return True

    def rewrite_convolution(self, node: onnx.NodeProto) -> bool:
        """Store a kernel in 8 bits, one scale for each channel that it makes; runtimes widen it when they open it."""
        tensor = self.tensors.get(self.tensor_name(node.input[1]))
        if tensor is None or np.prod(tensor.dims) < LEAST_VALUES:
            return False
        kernel = self.read(tensor.name).astype(np.float32)
        scale = np.abs(kernel).reshape(len(kernel), -1).max(axis=1).reshape(-1, *[1] * (kernel.ndim - 1)) / 127
        q = np.round(kernel / np.where(scale == 0, 1, scale)).astype(np.int8)
        wide = self.graph.to_float(self.graph.constant(f"{tensor.name}.q", q))
        kernel_name = self.graph.add("Mul", wide, self.graph.constant(f"{tensor.name}.scales", scale))
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        copied.input[1] = kernel_name
        self.graph.nodes.append(copied)
        return True

    def rename(self, made: str, wanted: str) -> None:
        """Give the last node's output the name that the nodes after it ask for."""
        assert self.graph.nodes[-1].output[0] == made
        self.graph.nodes[-1].output[0] = wanted

    def tensor_name(self, name: str) -> str:
        return str(self.casts.get(name, name))

    def find_matrix(self, name: str) -> Array | None:
        """Return a weight [in, out] or table that is worth quantizing, as float32; None for everything else."""
        tensor = self.tensors.get(self.tensor_name(name))
        if tensor is None or len(tensor.dims) != 2 or np.prod(tensor.dims) < LEAST_VALUES:
            return None
        if tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            return None
        return self.read(tensor.name).astype(np.float32)

    def read(self, name: str) -> Array:
        """Return a tensor, mapped if it is in a data file."""
        tensor = self.tensors[name]
        if tensor.data_location != TensorProto.EXTERNAL:
            return numpy_helper.to_array(tensor)
        place = {one.key: one.value for one in tensor.external_data}
        path, dtype = self.folder / place["location"], helper.tensor_dtype_to_np_dtype(tensor.data_type)
        try:
            return np.memmap(path, dtype, "r", offset=int(place.get("offset", 0)), shape=tuple(tensor.dims))
        except (OSError, ValueError) as error:  # ValueError: the file is cut off
            raise EncoderError(f"{path} cannot be read ({error}); convert the model again") from error


def find_ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Return the number of axes of values and weights, as far as the graph shows it."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info)}
    ranks = {name: len(kind.shape.dim) for name, kind in types.items() if kind.HasField("shape")}
    return ranks | {tensor.name: len(tensor.dims) for tensor in graph.initializer}


def quantize_graph(source: Path, target: Path, kind: OnnxType) -> set[int]:
    """Write a graph with its matrices quantized; return how many values share a scale in them."""
    with Graph(target, prefix="quantised_") as graph:
        rewriter = Rewriter(source, graph, kind)
        rewriter.run()
        model = rewriter.model
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.node.extend(graph.nodes)
        model.graph.initializer.extend(graph.initializers.values())
        if not any(opset.domain == CONTRIB for opset in model.opset_import):
            model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
        onnx.save(model, target)
        return rewriter.block_sizes


def quantize_folder(source: Path, target: Path, kind: OnnxType) -> OnnxFolder:
    """Write a folder with quantized graphs into `target`, which exists; other files are copied."""
    about = read_about(source)
    if about.quantisation != "none":
        raise EncoderError(f"{source} is quantized already ({about.quantisation}); start from the model it was made of")
    block_sizes = {
        size for tower in about.towers for size in quantize_graph(source / GRAPHS[tower], target / GRAPHS[tower], kind)
    }
    for name in (VOCABULARY, TOKENIZER):
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    quantized = dataclasses.replace(about, quantisation=kind, block_size=min(block_sizes, default=0))
    write_about(target, quantized)
    return quantized


def quantize_into(source: Path, out: Path, kind: OnnxType) -> None:
    """Write the folder with quantized graphs to a new place."""
    with made_whole(out) as staged:
        staged.mkdir()
        quantize_folder(source, staged, kind)
        write_sums(staged)
