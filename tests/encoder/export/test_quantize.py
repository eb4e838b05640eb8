from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.export.blocks import Bits, pack, quantize_rows
from clip_retrieval.encoder.export.compare import compare_towers
from clip_retrieval.encoder.export.config import GGML_NUMBERS, ConvertConfig, OnnxType, QuantizeConfig, QuantizedType
from clip_retrieval.encoder.export.convert import run_convert
from clip_retrieval.encoder.export.onnx_weights import quantize_graph
from clip_retrieval.encoder.export.quantize import run_quantize
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.encoder.uri import DEMO_MODEL
from clip_retrieval.errors import ConfigError, EncoderError
from tests.encoder.damage import WAYS

WriteModel = Callable[..., Path]


def unpack(packed: NDArray[np.uint8], form: Bits) -> NDArray[np.uint8]:
    if form.bits == 8:
        return packed
    halves: NDArray[np.uint8] = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return halves


def test_torch_is_not_needed() -> None:
    code = (
        "import sys, clip_retrieval.encoder.export.quantize; print(sorted({'torch', 'open_clip'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("form", [Bits(8, 32), Bits(4, 32), Bits(4, 64)])
@pytest.mark.parametrize("width", [64, 96, 50])
def test_every_value_comes_back_within_a_step(form: Bits, width: int) -> None:
    rows = np.random.default_rng(0).standard_normal((7, width)).astype(np.float32)
    q, scales = quantize_rows(rows, form)
    levels = unpack(pack(q, form), form).astype(np.float32) - form.middle
    back = (levels * scales[..., None]).reshape(7, -1)[:, :width]
    step = np.repeat(np.abs(scales), form.block_size, axis=1)[:, :width]
    inside = np.abs(rows) <= (form.middle - 1) * step  # the others are cut to the range, which errs less in all
    assert (np.abs(back - rows)[inside] <= 0.5001 * step[inside]).all()
    error = np.linalg.norm(back - rows) / np.linalg.norm(rows)
    assert error < (0.01 if form.bits == 8 else 0.12)


def test_zeros_and_single_values_are_exact() -> None:
    rows = np.zeros((2, 64), np.float32)
    rows[1, 5] = -3.5
    q, scales = quantize_rows(rows, Bits(4, 32))
    back = (q.astype(np.float32) - 8) * scales[..., None]
    assert back.reshape(2, -1) == pytest.approx(rows)


def test_four_bits_choose_the_scale_that_errs_least() -> None:
    """An outlier makes the plain scale too coarse for the others."""
    rows = np.random.default_rng(1).standard_normal((50, 64)).astype(np.float32)
    q, scales = quantize_rows(rows, Bits(4, 64))
    chosen = ((q.astype(np.float32) - 8) * scales[..., None]).reshape(50, -1)
    widest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1) / -8
    plain = np.clip(np.round(rows / widest), -8, 7) * widest
    assert np.linalg.norm(chosen - rows) < 0.99 * np.linalg.norm(plain - rows)


def convert(source: object, out: Path) -> Path:
    run_convert(ConvertConfig(source=str(source), out=str(out), to="onnx"))
    return out


def test_clip_cpps_numbers_are_types_too() -> None:
    kinds = {
        number: QuantizeConfig(source="a", out="b", type=cast("QuantizedType", number)).kind for number in GGML_NUMBERS
    }
    assert kinds == {"2": "q4_0", "3": "q4_1", "6": "q5_0", "7": "q5_1", "8": "q8_0"}
    assert QuantizeConfig(source="a", out="b", type="int4").kind == "int4"


@pytest.mark.parametrize(("kind", "least", "share"), [("int8", 0.995, 0.3), ("int4", 0.9, 0.2)])
def test_smaller_files_and_like_embeddings(
    tmp_path: Path, write_model: WriteModel, kind: OnnxType, least: float, share: float
) -> None:
    source = convert(write_model(), tmp_path / "onnx")
    result = run_quantize(QuantizeConfig(source=str(source), out=str(tmp_path / kind), type=kind))
    assert result.size_bytes < share * result.source_bytes
    assert {tower: agreement.least_cosine > least for tower, agreement in result.agreement.items()} == {
        "image": True,
        "text": True,
    }
    assert result.agreement["text"].largest_error > 1e-6  # it is quantized
    made = load_encoder(str(tmp_path / kind))
    assert made.info.fingerprint == load_encoder(str(source)).info.fingerprint


def test_no_large_matrix_is_left_whole(tmp_path: Path, write_model: WriteModel) -> None:
    source = convert(write_model(), tmp_path / "onnx")
    run_quantize(QuantizeConfig(source=str(source), out=str(tmp_path / "int4"), type="int4"))
    for graph in ("visual.onnx", "textual.onnx"):
        tensors = onnx.load(tmp_path / "int4" / graph, load_external_data=False).graph.initializer
        floats = [t for t in tensors if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 2]
        large = {tensor.name for tensor in floats if np.prod(tensor.dims) >= 4096}
        assert large <= {"positional_embedding", "visual.positional_embedding", "mask"}


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("shape", [[-1], [-1, 4], [-1, 2, 2], []], ids=str)
def test_rows_are_looked_up_by_ids_of_any_shape(tmp_path: Path, kind: OnnxType, shape: list[int]) -> None:
    """NLLB's places are one long row of ids: neither runtime opened its graph in 8 bits."""
    table = np.random.default_rng(0).standard_normal((100, 150)).astype(np.float32)
    nodes = [
        onnx.helper.make_node("Reshape", ["tokens", "shape"], ["ids"]),
        onnx.helper.make_node("Gather", ["table", "ids"], ["rows"]),
    ]
    tokens = onnx.helper.make_tensor_value_info("tokens", onnx.TensorProto.INT64, ["n"])
    rows = onnx.helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, [None] * (len(shape) + 1))
    weights: dict[str, NDArray[Any]] = {"table": table, "shape": np.array(shape, np.int64)}
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = onnx.helper.make_graph(nodes, "lookup", [tokens], [rows], initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "plain.onnx")

    quantize_graph(tmp_path / "plain.onnx", tmp_path / "small.onnx", kind)

    ids = np.array([3, 99, 0, 7, 7, 50, 1, 2] if shape else [99])
    (found,) = onnxruntime.InferenceSession(tmp_path / "small.onnx").run(None, {"tokens": ids})
    wanted = table[ids.reshape(shape)]
    assert found.shape == wanted.shape
    assert np.linalg.norm(found - wanted) < (0.01 if kind == "int8" else 0.12) * np.linalg.norm(wanted)


def test_kernels_of_resnets_are_stored_in_eight_bits(tmp_path: Path, write_model: WriteModel) -> None:
    resnet = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 32, "head_width": 32, "patch_size": None}
    source = convert(write_model(vision=resnet), tmp_path / "onnx")
    result = run_quantize(QuantizeConfig(source=str(source), out=str(tmp_path / "int8"), type="int8"))
    assert result.agreement["image"].least_cosine > 0.999
    sizes = [(folder / "visual.onnx.data").stat().st_size for folder in (source, tmp_path / "int8")]
    assert sizes[1] < 0.35 * sizes[0]


def test_f16_graphs_are_quantized_too(tmp_path: Path, write_model: WriteModel) -> None:
    run_convert(ConvertConfig(source=str(write_model()), out=str(tmp_path / "half"), to="onnx", dtype="f16"))
    result = run_quantize(QuantizeConfig(source=str(tmp_path / "half"), out=str(tmp_path / "int8"), type="int8"))
    assert min(agreement.least_cosine for agreement in result.agreement.values()) > 0.995
    assert result.size_bytes < 0.6 * result.source_bytes


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")
@pytest.mark.parametrize(("kind", "least"), [("int8", 0.99), ("int4", 0.95)])
def test_openvino_reads_quantized_graphs(tmp_path: Path, write_model: WriteModel, kind: OnnxType, least: float) -> None:
    source = convert(write_model(), tmp_path / "onnx")
    run_quantize(QuantizeConfig(source=str(source), out=str(tmp_path / kind), type=kind))
    light, fast = (
        load_encoder(EncoderConfig(clip_model=f"onnx:{tmp_path / kind}?runtime={runtime}", precision="fp32"))
        for runtime in ("onnxruntime", "openvino")
    )
    found = compare_towers(light, fast)
    assert min(agreement.least_cosine for agreement in found.values()) > least


def test_gguf_types_are_made_from_gguf(tmp_path: Path, write_model: WriteModel) -> None:
    run_convert(ConvertConfig(source=str(write_model()), out=str(tmp_path / "a.gguf"), to="gguf", dtype="f32"))
    result = run_quantize(QuantizeConfig(source=str(tmp_path / "a.gguf"), out=str(tmp_path / "b.gguf"), type="q8_0"))
    assert result.size_bytes < 0.4 * result.source_bytes
    assert min(agreement.least_cosine for agreement in result.agreement.values()) > 0.995


def test_a_packed_text_encoder_gives_the_same_and_is_what_its_onnxruntime_opens(
    tmp_path: Path, write_model: WriteModel
) -> None:
    source = convert(write_model(), tmp_path / "onnx")
    for name, is_packed in (("plain", False), ("packed", True)):
        run_quantize(QuantizeConfig(source=str(source), out=str(tmp_path / name), type="int8", packed=is_packed))
    (packed,) = (tmp_path / "packed").glob("textual.onnxruntime-*.onnx")
    assert (tmp_path / "packed" / f"{packed.name}.data").exists()
    texts = ["a dog", "three red cats in the snow"]
    wanted = load_encoder(str(tmp_path / "plain")).encode_texts(texts)
    (tmp_path / "packed" / "textual.onnx.data").rename(tmp_path / "hidden")

    def encode() -> NDArray[np.float32]:
        return load_encoder(f"onnx:{tmp_path / 'packed'}?runtime=onnxruntime").encode_texts(texts)

    assert encode() == pytest.approx(wanted, abs=1e-6)
    packed.rename(packed.with_name("textual.onnxruntime-0.1.onnx"))  # of another version, which is ignored
    with pytest.raises(EncoderError, match=r"textual\.onnx cannot be opened"):
        encode()
    (tmp_path / "hidden").rename(tmp_path / "packed" / "textual.onnx.data")
    assert encode() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("has_sums", [True, False])
@pytest.mark.parametrize("damage", WAYS[1:-1])
@pytest.mark.parametrize("ending", [".onnx", ".onnx.data"])
def test_a_damaged_file_of_a_packed_text_encoder_is_named(
    packed: Path, tmp_path: Path, damage: Callable[[Path], None], ending: str, has_sums: bool
) -> None:
    folder = shutil.copytree(packed, tmp_path / "packed")
    if not has_sums:
        (folder / "sums.json").unlink()
    (file,) = folder.glob(f"textual.onnxruntime-*{ending}")
    damage(file)
    with pytest.raises(EncoderError, match=rf"{re.escape(file.name.removesuffix('.data'))}"):
        load_encoder(f"onnx:{folder}?runtime=onnxruntime").encode_texts(["a dog"])


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in int8, packed."""
    folder = tmp_path_factory.mktemp("packed")
    source = convert(f"open_clip:local-dir:{DEMO_MODEL}", folder / "onnx")
    run_quantize(QuantizeConfig(source=str(source), out=str(folder / "packed"), type="int8", packed=True))
    return folder / "packed"


def test_gguf_is_not_packed() -> None:
    with pytest.raises(ConfigError, match="packed is for int8 and int4"):
        QuantizeConfig(source="a", out="b", type="q8_0", packed=True)


def test_real_pictures_may_be_given(tmp_path: Path, write_pictures: Callable[[Path, int], Path]) -> None:
    source = convert(f"open_clip:local-dir:{DEMO_MODEL}", tmp_path / "onnx")
    pictures = write_pictures(tmp_path / "pictures", 9)
    (pictures / "broken.jpg").write_bytes(b"no picture")
    result = run_quantize(
        QuantizeConfig(source=str(source), out=str(tmp_path / "out"), type="int8", images=str(pictures))
    )
    assert result.agreement["image"].count == 9


@pytest.mark.parametrize(("kind", "sentence"), [("int8", "from an ONNX folder"), ("q4_0", "from a GGUF file")])
def test_the_wrong_source_says_how_to_convert(
    tmp_path: Path, write_model: WriteModel, monkeypatch: pytest.MonkeyPatch, kind: OnnxType, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EncoderError, match=f"{sentence}; convert the original model first: clip-retrieval convert"):
        run_quantize(QuantizeConfig(source=str(write_model()), out=str(tmp_path / "out"), type=kind))
    with pytest.raises(EncoderError, match=f"demo is not a file .* {sentence}; .* clip-retrieval convert demo OUT"):
        run_quantize(QuantizeConfig(source="demo", out=str(tmp_path / "out"), type=kind))


def test_twice_is_once_too_often(tmp_path: Path, write_model: WriteModel) -> None:
    source = convert(write_model(), tmp_path / "onnx")
    run_quantize(QuantizeConfig(source=str(source), out=str(tmp_path / "int8"), type="int8"))
    with pytest.raises(EncoderError, match="is quantized already"):
        run_quantize(QuantizeConfig(source=str(tmp_path / "int8"), out=str(tmp_path / "int4"), type="int4"))
    assert not (tmp_path / "int4").exists()
