from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.engines.onnx import OnnxEncoder
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.encoder.uri import DEMO_MODEL
from clip_retrieval.errors import ConfigError, EncoderError

TEXTS = ["a dog", "a slice of pizza on a plate", "", "red heart", " ".join(["very"] * 100)]
HEAVY = ("torch", "open_clip", "transformers", "onnxscript", "onnx", "pandas", "pyarrow")


@pytest.fixture
def demo_copy(tmp_path: Path) -> Path:
    return shutil.copytree(DEMO_MODEL, tmp_path / "demo", ignore=shutil.ignore_patterns("open_clip_config.json"))


def demo() -> OnnxEncoder:
    encoder = load_encoder("demo")
    assert isinstance(encoder, OnnxEncoder)
    return encoder


def test_the_embedded_model_gives_what_torch_gives_of_its_weights() -> None:
    light, torch = demo(), load_encoder(f"open_clip:local-dir:{DEMO_MODEL}")
    pixels = np.random.default_rng(0).integers(0, 256, (37, 64, 64, 3), dtype=np.uint8)
    assert light.encode_images(pixels) == pytest.approx(torch.encode_images(pixels), abs=2e-6)
    texts, wanted = light.embed_texts(TEXTS), torch.embed_texts(TEXTS)
    assert texts.rows == pytest.approx(wanted.rows, abs=2e-6)
    assert texts.truncated_count == wanted.truncated_count == 1
    assert light.info.fingerprint == torch.info.fingerprint
    assert light.info.logit_scale == pytest.approx(torch.info.logit_scale)


def test_no_torch_and_no_transformers_are_in_the_process() -> None:
    code = (
        "import sys\nfrom clip_retrieval import load_encoder\nimport numpy as np\n"
        "encoder = load_encoder('demo')\nrows = encoder.encode_texts(['a dog', 'caf\\u00e9'])\n"
        "assert rows.shape == (2, 128) and rows.dtype == np.float32\n"
        "encoder.encode_images(np.zeros((1, 64, 64, 3), np.uint8))\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_rows_do_not_depend_on_what_else_is_encoded() -> None:
    encoder = demo()
    texts = [f"{'a very ' * (i % 9)}red thing {i}" for i in range(70)]
    together = encoder.encode_texts(texts)
    alone = np.concatenate([encoder.encode_texts([text]) for text in texts])
    assert together == pytest.approx(alone, abs=2e-6)


def test_texts_that_were_embedded_ahead_are_the_same_and_handed_out_once() -> None:
    ahead, rows = demo(), demo().encode_texts(["a dog"])
    ahead.start_text_side(["a dog", "pizza"])
    ahead.wait_for_text_side()
    assert set(ahead.ahead) == {"a dog", "pizza"}
    assert (ahead.encode_texts(["a dog"]) == rows).all()
    assert set(ahead.ahead) == {"pizza"}
    assert np.allclose(ahead.encode_texts(["a dog"]), rows, atol=1e-6)


def test_nothing_is_encoded_to_nothing() -> None:
    encoder = demo()
    assert encoder.encode_texts([]).shape == (0, 128)
    assert encoder.encode_images(np.zeros((0, 64, 64, 3), np.uint8)).shape == (0, 128)


def test_ids_may_be_given_padded_or_cut() -> None:
    encoder = demo()
    tokens, _ = encoder.tokenizer.tokenize(TEXTS[:2])
    assert encoder.encode_tokens(tokens[:, :12]) == pytest.approx(encoder.encode_texts(TEXTS[:2]), abs=2e-6)


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")
@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.99999), ("auto", 0.999)])
def test_openvino_gives_the_same(demo_copy: Path, precision: str, least: float) -> None:
    config = EncoderConfig(clip_model=f"onnx:{demo_copy}?runtime=openvino", precision=precision)  # type: ignore[arg-type]
    encoder = load_encoder(config)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    assert (encoder.encode_images(pixels) * demo().encode_images(pixels)).sum(axis=1).min() > least
    assert (encoder.encode_texts(TEXTS) * demo().encode_texts(TEXTS)).sum(axis=1).min() > least


@pytest.mark.parametrize("uri", ["onnx:{}", "{}", "onnx:{}?runtime=onnxruntime"])
def test_a_folder_is_opened_by_prefix_or_by_what_is_in_it(demo_copy: Path, uri: str) -> None:
    encoder = load_encoder(uri.format(demo_copy))
    assert encoder.encode_texts(["a dog"]) == pytest.approx(demo().encode_texts(["a dog"]))


def test_the_runtime_can_be_left_to_the_workload(demo_copy: Path) -> None:
    encoder = load_encoder(f"onnx:{demo_copy}")
    assert isinstance(encoder, OnnxEncoder)
    assert encoder.way.runtime == "onnxruntime"
    bulk = load_encoder(f"onnx:{demo_copy}", workload="bulk")
    assert isinstance(bulk, OnnxEncoder)
    assert bulk.way.runtime == ("openvino" if importlib.util.find_spec("openvino") else "onnxruntime")


def refusal(config: EncoderConfig | str, use: Callable[[OnnxEncoder], object] = lambda _: None) -> str:
    with pytest.raises(EncoderError) as error:
        use(load_encoder(config))  # type: ignore[arg-type]
    return str(error.value)


def test_what_is_refused_says_what_to_do(demo_copy: Path, tmp_path: Path) -> None:
    assert "there is no folder nowhere; make one with clip-retrieval convert" in refusal("onnx:nowhere")
    assert "must be runtime=onnxruntime or runtime=openvino" in refusal(f"onnx:{demo_copy}?runtime=tensorrt")
    assert "runs on the CPU" in refusal(EncoderConfig(clip_model=f"onnx:{demo_copy}", device="cuda:0"))
    fp16 = EncoderConfig(clip_model=f"onnx:{demo_copy}?runtime=onnxruntime", precision="fp16")
    assert "ONNX Runtime computes in fp32" in refusal(fp16)
    (tmp_path / "empty").mkdir()
    assert "has no model.json" in refusal(f"onnx:{tmp_path / 'empty'}")


SPEC = {"kind": "clip", "context_length": 77, "is_cut": True}
PREPROCESS = {"size": 64, "mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"dimension": "many"},
        {"dimension": 0},
        {"towers": []},
        {"tokenizer": {"kind": "clip"}},
        {"tokenizer": {**SPEC, "context_length": 0}},
        {"tokenizer": {**SPEC, "kind": "zzz"}},
        {"preprocess": {**PREPROCESS, "interpolation": "magic"}},
        {"preprocess": {**PREPROCESS, "std": [0.0, 1.0, 1.0]}},
        {"logit_scale": float("nan")},
        {"logit_scale": "a"},
    ],
    ids=str,
)
def test_a_broken_description_is_refused(demo_copy: Path, change: dict[str, object]) -> None:
    about = json.loads((demo_copy / "model.json").read_text())
    (demo_copy / "model.json").write_text(json.dumps({**about, **change}))
    assert "convert the model again" in refusal(f"onnx:{demo_copy}")


def test_a_missing_graph_is_named(demo_copy: Path) -> None:
    (demo_copy / "visual.onnx").unlink()
    assert "lacks visual.onnx" in refusal(f"onnx:{demo_copy}")


def test_a_broken_graph_is_one_sentence(demo_copy: Path) -> None:
    graph = demo_copy / "textual.onnx"
    graph.write_bytes(graph.read_bytes()[:1000])
    message = refusal(f"onnx:{demo_copy}", lambda encoder: encoder.encode_texts(["a"]))
    assert f"{graph} cannot be opened by ONNX Runtime" in message
    assert "\n" not in message


def test_missing_weights_are_one_sentence(demo_copy: Path) -> None:
    (demo_copy / "open_clip_model.safetensors").unlink()
    message = refusal(f"onnx:{demo_copy}", lambda encoder: encoder.encode_texts(["a"]))
    assert "open_clip_model.safetensors" in message
    assert "\n" not in message


def test_a_model_that_is_gone_before_its_first_text_is_one_sentence(demo_copy: Path) -> None:
    encoder = load_encoder(f"onnx:{demo_copy}")
    shutil.rmtree(demo_copy)
    with pytest.raises(EncoderError, match=r"textual\.onnx cannot be opened by ONNX Runtime"):
        encoder.encode_texts(["a dog"])


def test_an_error_of_the_thread_that_opens_the_graph_is_raised_and_not_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = demo()
    monkeypatch.setenv("CLIP_RETRIEVAL_CORES", "none")
    with pytest.raises(ConfigError, match="CLIP_RETRIEVAL_CORES must be a number of cores"):
        encoder.encode_texts(["a dog"])


def test_anything_but_a_list_of_texts_is_refused() -> None:
    with pytest.raises(EncoderError, match=r'^expected a list of texts such as \["a dog"\], got a str$'):
        demo().encode_texts("a dog")
    with pytest.raises(EncoderError, match="got a list with a bytes in it"):
        demo().encode_texts([b"a dog"])  # type: ignore[list-item]


@pytest.mark.parametrize("change", [{"dimension": 64}, {"preprocess": {**PREPROCESS, "size": 32}}], ids=str)
def test_a_description_of_another_graph_is_one_sentence(demo_copy: Path, change: dict[str, object]) -> None:
    about = json.loads((demo_copy / "model.json").read_text())
    (demo_copy / "model.json").write_text(json.dumps({**about, **change}))
    size = 32 if "preprocess" in change else 64
    pixels = np.zeros((1, size, size, 3), np.uint8)
    message = refusal(f"onnx:{demo_copy}", lambda encoder: encoder.encode_images(pixels))
    assert "visual.onnx" in message
    assert "\n" not in message


def test_ids_that_are_none_are_one_sentence() -> None:
    with pytest.raises(EncoderError, match=r"textual\.onnx cannot encode this"):
        demo().encode_tokens(np.full((1, 77), 99_999_999))


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")
@pytest.mark.parametrize("count", [1, 15, 16, 37])
def test_parts_of_a_batch_on_all_cores_come_back_in_order(demo_copy: Path, count: int) -> None:
    config = EncoderConfig(clip_model=f"onnx:{demo_copy}", precision="fp32")
    pixels = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    rows = load_encoder(config, workload="bulk").encode_images(pixels)
    assert (rows * demo().encode_images(pixels)).sum(axis=1).min() > 0.99999


def write_wide_graph(path: Path, first: float) -> None:
    """Write a graph whose intermediate values suit fp32, but not the product of its factors, which OpenVINO makes."""
    helper, array = onnx.helper, onnx.numpy_helper.from_array
    nodes = [
        helper.make_node("Cast", ["pixels"], ["values"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values", "sides"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "first"], ["small"]),
        helper.make_node("Relu", ["small"], ["positive"]),
        helper.make_node("Mul", ["positive", "wide"], ["once"]),
        helper.make_node("Mul", ["once", "wide"], ["embeddings"]),
    ]
    constants = [
        array(np.array(first, np.float32), "first"),
        array(np.array([[1e20, 2e20, 3e20]], np.float32), "wide"),
        array(np.array([1, 2]), "sides"),
    ]
    pixels = helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, ["n", 64, 64, 3])
    rows = helper.make_tensor_value_info("embeddings", onnx.TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "wide", [pixels], [rows], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_onnx_runtime_takes_over_where_openvino_alone_gives_no_numbers(
    demo_copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_wide_graph(demo_copy / "visual.onnx", first=1e-30)
    about = json.loads((demo_copy / "model.json").read_text())
    (demo_copy / "model.json").write_text(json.dumps(about | {"dimension": 3, "towers": ["image"]}))
    encoder = load_encoder(EncoderConfig(clip_model=f"onnx:{demo_copy}?runtime=openvino", precision="fp32"))
    pixels = np.full((2, 64, 64, 3), 100, dtype=np.uint8)
    wanted = np.array([[1, 4, 9]] * 2) / np.sqrt(98)
    under_way = [encoder.start_images(pixels), encoder.start_images(pixels)]  # the second has begun on OpenVINO too
    for rows in (under_way[0](), under_way[1](), encoder.encode_images(pixels)):
        assert rows == pytest.approx(wanted, abs=1e-6)
    assert caplog.text.count("ONNX Runtime encodes from now on") == 1


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_a_graph_that_gives_no_numbers_anywhere_is_refused(demo_copy: Path) -> None:
    write_wide_graph(demo_copy / "visual.onnx", first=1)
    about = json.loads((demo_copy / "model.json").read_text())
    (demo_copy / "model.json").write_text(json.dumps(about | {"dimension": 3, "towers": ["image"]}))
    encoder = load_encoder(EncoderConfig(clip_model=f"onnx:{demo_copy}?runtime=openvino", precision="fp32"))
    with pytest.raises(EncoderError, match=r"not numbers \(NaN or infinite\)"):
        encoder.encode_images(np.full((1, 64, 64, 3), 100, dtype=np.uint8))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_runtime_leaves_nothing_of_its_telemetry_in_the_home_folder(runtime: str, tmp_path: Path) -> None:
    code = (
        f"from clip_retrieval.encoder.load import load_encoder\n"
        f"load_encoder('onnx:{DEMO_MODEL}?runtime={runtime}').encode_texts(['dog'])\n"
        f"import sys; assert '{runtime}' in sys.modules; assert 'openvino_telemetry' not in sys.modules"
    )
    own = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | own)
    assert not list(tmp_path.rglob("*"))
