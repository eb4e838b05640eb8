"""An ONNX graph in the making: nodes in order, weights streamed into a data file that runtimes map into memory."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from clip_retrieval.process.stoppable import go_on_if_wanted

Stored = Literal["f32", "f16"]
DTYPES = {"f32": np.float32, "f16": np.float16}

OPSET = 20  # the first with Gelu
CONTRIB = "com.microsoft"  # operators that ONNX Runtime adds
IR_VERSION = 10
LEAST_EXTERNAL_BYTES = 1024
PAGE_BYTES = 4096  # alignment of mapped files


class Graph:
    """Adds nodes one after another; an output is used by its name. Use it as a context: it owns the data file."""

    def __init__(self, path: Path, stored: Stored = "f32", prefix: str = "") -> None:
        self.path = path
        self.stored = stored
        self.prefix = prefix  # prefix of new names, so that they differ from copied nodes' names
        self.data_path = path.with_name(path.name + ".data")
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self.data = self.data_path.open("wb")

    def __enter__(self) -> Graph:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.data.close()

    def add(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output, and return that."""
        return self.add_many(operator, *inputs, count=1, domain=domain, **attributes)[0]

    def add_many(self, operator: str, *inputs: str, count: int, domain: str = "", **attributes: Any) -> list[str]:
        name = f"{self.prefix}{operator}_{len(self.nodes)}"
        outputs = [f"{name}_{i}" for i in range(count)] if count > 1 else [name]
        self.nodes.append(helper.make_node(operator, list(inputs), outputs, name=name, domain=domain, **attributes))
        return outputs

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Add an array under its name, unchanged; a large one goes to the data file at once."""
        if name not in self.initializers:
            array = np.asarray(array, order="C")
            is_large = array.nbytes >= LEAST_EXTERNAL_BYTES
            self.initializers[name] = self.store(name, array) if is_large else numpy_helper.from_array(array, name)
        return name

    def weight(self, name: str, array: NDArray[np.float32]) -> str:
        """Add a weight; matrices are stored in the number format of the file and cast to float32."""
        if array.ndim < 2 or self.stored == "f32":
            return self.constant(name, array)
        return self.to_float(self.constant(name, array.astype(DTYPES[self.stored])))

    def rows(self, name: str, table: NDArray[np.float32], ids: str) -> str:
        """Look up rows of a table; if it is stored in less than float32, only these rows are cast."""
        found = self.add("Gather", self.constant(name, table.astype(DTYPES[self.stored], copy=False)), ids)
        return found if self.stored == "f32" else self.to_float(found)

    def to_float(self, x: str) -> str:
        return self.add("Cast", x, to=TensorProto.FLOAT)

    def integers(self, *values: int) -> str:
        """Add a shape, axes or indices."""
        return self.constant("integers_" + "_".join(map(str, values)), np.array(values, dtype=np.int64))

    def number(self, value: float) -> str:
        return self.constant(f"number_{value!r}", np.array(value, dtype=np.float32))

    def store(self, name: str, array: NDArray[Any]) -> TensorProto:
        go_on_if_wanted()
        self.data.write(bytes(-self.data.tell() % PAGE_BYTES))
        tensor = TensorProto(
            name=name,
            dims=array.shape,
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
            data_location=TensorProto.EXTERNAL,
        )
        place = {"location": self.data_path.name, "offset": self.data.tell(), "length": array.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        self.data.write(array.data)
        return tensor

    def save(self, given: onnx.ValueInfoProto, made: str, dimension: int, description: str) -> None:
        """Write the graph next to its data: one input, and `made` as its output, embeddings [batch, dimension]."""
        output = helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", dimension])
        last = helper.make_node("Identity", [made], ["embeddings"], name="embeddings")
        graph = helper.make_graph(
            [*self.nodes, last], self.path.stem, [given], [output], list(self.initializers.values())
        )
        domains = sorted({node.domain for node in self.nodes} | {""})
        opsets = [helper.make_opsetid(domain, 1 if domain else OPSET) for domain in domains]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, doc_string=description)
        model.producer_name = "clip-retrieval"
        onnx.save(model, self.path)
