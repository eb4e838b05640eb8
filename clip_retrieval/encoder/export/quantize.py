"""The command `quantize`: a converted model with fewer bits, and what that does to its embeddings."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.engines.sessions import write_packed
from clip_retrieval.encoder.export.compare import Agreement, compare_towers
from clip_retrieval.encoder.export.config import OnnxType, QuantizeConfig
from clip_retrieval.encoder.export.onnx_weights import quantize_folder
from clip_retrieval.encoder.formats.gguf import quantize_gguf
from clip_retrieval.encoder.formats.onnx_folder import GRAPHS
from clip_retrieval.encoder.formats.onnx_sums import write_sums
from clip_retrieval.encoder.formats.recognize import recognize
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.errors import EncoderError
from clip_retrieval.storage import made_whole, size_of


@dataclass(frozen=True)
class Quantized:
    """What was made, how much smaller it is, and how well it agrees with the original."""

    source: str
    out: str
    type: str
    source_bytes: int
    size_bytes: int
    agreement: dict[str, Agreement]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run_quantize(config: QuantizeConfig) -> Quantized:
    """Quantize a model, and compare it with the original on pictures and texts."""
    source, out = Path(config.source.removeprefix("onnx:")).expanduser(), Path(config.out).expanduser()
    wanted = "onnx" if config.kind in get_args(OnnxType) else "gguf"
    found = recognize(source) if source.exists() else "not a file or folder"
    if found != wanted:
        article = "an ONNX folder" if wanted == "onnx" else "a GGUF file"
        model = "MODEL" if source.exists() else config.source
        raise EncoderError(
            f"{source} is {found}, but {config.kind} is made from {article}; convert the original model first: "
            f"clip-retrieval convert {model} OUT --to {wanted}"
        )
    with made_whole(out) as staged:
        if config.kind == "int8" or config.kind == "int4":
            staged.mkdir()
            about = quantize_folder(source, staged, config.kind)
            if config.packed and "text" in about.towers:
                write_packed(staged / GRAPHS["text"])
        else:
            quantize_gguf(source, staged, config.kind)
        pictures = None if config.images is None else Path(config.images)
        agreement = compare_towers(open_reference(source), open_reference(staged), pictures)
        if wanted == "onnx":
            write_sums(staged)
    return Quantized(config.source, str(out), config.kind, size_of(source), size_of(out), agreement)


def open_reference(path: Path) -> Any:
    uri = f"onnx:{path}?runtime=onnxruntime" if path.is_dir() else f"gguf:{path}"
    return load_encoder(EncoderConfig(clip_model=uri, device="cpu", precision="fp32"))
