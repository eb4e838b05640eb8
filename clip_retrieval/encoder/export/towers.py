"""A checkpoint to ONNX graphs, without torch: the towers of OpenAI's CLIP and similar models, and of Mixer CLIP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from onnx import TensorProto, helper

from clip_retrieval.encoder.export.graph import Graph, Stored
from clip_retrieval.encoder.export.mixer import add_image_mixer, add_text_mixer
from clip_retrieval.encoder.export.resnet import add_resnet
from clip_retrieval.encoder.export.text import add_text_transformer
from clip_retrieval.encoder.export.transformer import USUAL_EPSILON, Activation, Layers
from clip_retrieval.encoder.export.vision import add_vision_transformer
from clip_retrieval.encoder.formats.checkpoint import Checkpoint
from clip_retrieval.encoder.formats.onnx_folder import GRAPHS
from clip_retrieval.errors import EncoderError

SAYABLE = {  # fields of open_clip's configurations that these graphs support
    "vision_cfg": {
        "image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio", "norm_kwargs", "act_kwargs",
    },
    "text_cfg": {
        "context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "norm_kwargs", "act_kwargs",
        "pool_type", "eos_id",
    },
}  # fmt: skip


def is_buildable(checkpoint: Checkpoint) -> bool:
    """Say whether the graphs here can express the configuration; others are for torch's exporter."""
    return not find_odd(checkpoint)


def find_odd(checkpoint: Checkpoint) -> list[str]:
    if checkpoint.family == "mixer":
        return []
    config = checkpoint.model_config
    odd = [
        key
        for part, known in SAYABLE.items()
        for key, value in config.get(part, {}).items()
        if value and key not in known
    ]
    if config.get("text_cfg", {}).get("pool_type", "argmax") not in ("argmax", "eos"):
        odd.append("pool_type")
    return odd


def write_towers(checkpoint: Checkpoint, folder: Path, towers: Sequence[str], stored: Stored) -> None:
    """Write the graphs of these towers into a folder; raises EncoderError if a weight is missing."""
    try:
        for tower in towers:
            with Graph(folder / GRAPHS[tower], stored) as graph:
                (write_image if tower == "image" else write_text)(checkpoint, graph)
    except KeyError as error:
        raise EncoderError(f"{checkpoint.source} is an incomplete model: it does not hold {error}") from error


def write_image(checkpoint: Checkpoint, graph: Graph) -> None:
    size = checkpoint.preprocess.size
    given = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", size, size, 3])
    config = checkpoint.model_config
    if checkpoint.family == "mixer":
        add = partial(add_image_mixer, config=config)
        layers = Layers(graph, checkpoint.tensors)
    else:
        is_resnet = isinstance(config["vision_cfg"]["layers"], list | tuple)
        add = partial(add_resnet if is_resnet else add_vision_transformer, config=config["vision_cfg"])
        layers = make_layers(checkpoint, graph, config["vision_cfg"])
    made = add(layers, given.name, checkpoint.preprocess)
    graph.save(given, made, config["embed_dim"], "RGB pixels 0 to 255 -> CLIP embeddings, not normalised")


def write_text(checkpoint: Checkpoint, graph: Graph) -> None:
    config = checkpoint.model_config
    length = config["context_length"] if checkpoint.family == "mixer" else "length"
    given = helper.make_tensor_value_info("tokens", TensorProto.INT32, ["batch", length])
    if checkpoint.family == "mixer":
        made = add_text_mixer(Layers(graph, checkpoint.tensors), given.name, config)
    else:
        made = add_text_transformer(make_layers(checkpoint, graph, config["text_cfg"]), given.name, config["text_cfg"])
    graph.save(given, made, config["embed_dim"], "CLIP token ids -> CLIP embeddings, not normalised")


def make_layers(checkpoint: Checkpoint, graph: Graph, tower: Mapping[str, Any]) -> Layers:
    activation: Activation = "quick_gelu"
    if not checkpoint.model_config.get("quick_gelu"):
        activation = "gelu_tanh" if (tower.get("act_kwargs") or {}).get("approximate") == "tanh" else "gelu"
    epsilon = (tower.get("norm_kwargs") or {}).get("eps", USUAL_EPSILON)
    return Layers(graph, checkpoint.tensors, activation, epsilon)
