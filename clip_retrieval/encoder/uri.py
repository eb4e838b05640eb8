"""Model names as people write them, and what they mean. Imports nothing heavy."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl

import msgspec

from clip_retrieval.errors import EncoderError

# OpenAI's own names; their weights were trained with the QuickGELU activation.
OPENAI_NAMES = {
    "RN50": "RN50-quickgelu",
    "RN101": "RN101-quickgelu",
    "RN50x4": "RN50x4-quickgelu",
    "RN50x16": "RN50x16-quickgelu",
    "RN50x64": "RN50x64-quickgelu",
    "ViT-B/32": "ViT-B-32-quickgelu",
    "ViT-B/16": "ViT-B-16-quickgelu",
    "ViT-L/14": "ViT-L-14-quickgelu",
    "ViT-L/14@336px": "ViT-L-14-336-quickgelu",
}
FORMS = (
    f"an OpenAI name ({', '.join(OPENAI_NAMES)}), open_clip:ARCH/TAG, open_clip:ARCH//path/to/checkpoint, "
    "open_clip:hf-hub:ORG/NAME (open_clip: names may end in ?mean=0,0,0&std=1,1,1), a file or folder of weights (of "
    "OpenAI, transformers CLIP, Mixer CLIP, GGUF, Clippie .weights, open_clip, ONNX), hf_clip:ORG/NAME, gguf:ORG/NAME, "
    "demo, onnx:FOLDER?runtime=onnxruntime, random:ARCH?seed=0, hash:DIMENSION"
)
LATER = {
    "nm": "DeepSparse is no longer maintained; take an open_clip model",
    "ja_clip": "take a multilingual open_clip model such as open_clip:xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k",
}

GENERATED_OPTIONS = {"random": {"seed": 0}, "hash": {"seed": 0, "size": 1}}  # and the least value of each

HUB_PREFIX = "hf-hub:"
GGUF_HUB_PREFIX = "hf-hub-gguf:"
GGUF_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(/[\w./-]+\.gguf)?(@\w[\w./-]*)?", re.ASCII)
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\w[\w./-]*)?", re.ASCII)  # ORG/NAME, perhaps @REVISION

PICTURES = re.compile(r"(?P<model>.+)\?(?P<query>((mean|std)=[^&?]*&?)+)")

RUNTIMES = ("onnxruntime", "openvino")
Kind = Literal["open_clip", "checkpoint", "onnx", "random", "hash"]
DEMO_MODEL = Path(__file__).parent.parent / "demo" / "model"


class ModelName(msgspec.Struct, frozen=True):
    """What a URI means: the engine, the architecture or folder, and where the weights come from."""

    uri: str
    kind: Kind
    architecture: str
    weights: str | None = None  # tag or file; None if the architecture's name is enough
    options: tuple[tuple[str, int], ...] = ()
    pictures: tuple[tuple[str, tuple[float, float, float]], ...] = ()  # mean and std, if the name gives them

    def option(self, name: str, default: int) -> int:
        return dict(self.options).get(name, default)


def parse_uri(uri: str) -> ModelName:
    """Return what a model name means; raises EncoderError for names that mean nothing."""
    name = uri.removeprefix("openai_clip:")
    if name in OPENAI_NAMES:
        return ModelName(uri, "open_clip", OPENAI_NAMES[name], "openai")
    if uri == "demo":
        return ModelName(uri, "onnx", str(DEMO_MODEL), "onnxruntime")
    prefix, _, rest = uri.partition(":")
    if prefix in PARSERS and rest:
        return PARSERS[prefix](uri, rest)
    if prefix in LATER:
        raise EncoderError(f"{prefix}: models are not supported: {LATER[prefix]}")
    if uri and Path(uri).expanduser().exists():
        return parse_path(uri, uri)
    raise EncoderError(f"there is no model {uri!r}; a model is {FORMS}")


def absolute_uri(uri: str) -> str:
    """Return the name with the path of a local model made absolute; every other name is unchanged."""
    name = parse_uri(uri)
    place = name.architecture.removeprefix("local-dir:")
    is_local = name.kind in ("checkpoint", "onnx") or name.architecture.startswith("local-dir:")
    if uri == "demo" or not is_local or not Path(place).exists():
        return uri
    query = f"?{uri.partition('?')[2]}" if "?" in uri else ""
    prefix = {"onnx": "onnx:", "open_clip": "open_clip:local-dir:"}.get(name.kind, "")
    return f"{prefix}{Path(place).resolve()}{query}"


def parse_path(uri: str, rest: str) -> ModelName:
    """A file or folder is recognized by its content; open_clip's folders are left to open_clip."""
    path = Path(rest).expanduser()
    if not path.exists():
        raise EncoderError(
            f"{uri}: there is no file or folder {rest}; a name on a hub is open_clip:hf-hub:ORG/NAME, or "
            "hf_clip:ORG/NAME for CLIP of transformers"
        )
    if (path / "open_clip_config.json").exists():
        return ModelName(uri, "open_clip", f"local-dir:{path}")
    if any((path / name).exists() for name in ("model.json", "visual.onnx", "textual.onnx")):
        return ModelName(uri, "onnx", str(path))
    return ModelName(uri, "checkpoint", str(path))


def parse_transformers(uri: str, rest: str) -> ModelName:
    """Take a path that exists; otherwise a name like ORG/NAME is on a hub."""
    if HUB_NAME.fullmatch(rest) and not Path(rest).exists():
        return ModelName(uri, "checkpoint", HUB_PREFIX + rest)
    return parse_path(uri, rest)


def parse_gguf(uri: str, rest: str) -> ModelName:
    """Take a path that exists; otherwise a name like ORG/NAME or ORG/NAME/FILE.gguf is on a hub."""
    if GGUF_HUB_NAME.fullmatch(rest) and not Path(rest).exists():
        return ModelName(uri, "checkpoint", GGUF_HUB_PREFIX + rest)
    return parse_path(uri, rest)


def parse_onnx(uri: str, rest: str) -> ModelName:
    """Take a folder and, after ?runtime=, the runtime."""
    folder, _, query = rest.partition("?")
    path = Path(folder).expanduser()
    key, _, runtime = query.partition("=")
    if query and (key != "runtime" or runtime not in RUNTIMES):
        raise EncoderError(f"{uri}: what follows ? must be runtime={' or runtime='.join(RUNTIMES)}")
    if not path.is_dir():
        raise EncoderError(
            f"{uri}: there is no folder {folder}; make one with clip-retrieval convert MODEL OUT --to onnx"
        )
    return ModelName(uri, "onnx", str(path), runtime or None)


def parse_open_clip(uri: str, rest: str) -> ModelName:
    """Split at the first slash: a tag follows, or a file if it exists; after ? mean and std."""
    match = PICTURES.fullmatch(rest)
    if match:
        pictures = parse_pictures(uri, match["query"])
        return msgspec.structs.replace(parse_open_clip(uri, match["model"]), pictures=pictures)
    if rest.startswith((HUB_PREFIX, "local-dir:")):
        return ModelName(uri, "open_clip", rest)
    architecture, _, weights = rest.partition("/")
    if weights.startswith("/") and not Path(weights).exists():
        raise EncoderError(f"{uri}: there is no file {weights}")
    return ModelName(uri, "open_clip", architecture, weights or None)


def parse_pictures(uri: str, query: str) -> tuple[tuple[str, tuple[float, float, float]], ...]:
    """Return mean and std of ?mean=0,0,0&std=1,1,1: of each color, or one number for all."""
    found = {}
    for key, text in parse_qsl(query):
        try:
            values = [float(number) for number in text.split(",")]
        except ValueError:
            values = []
        red, green, blue = values * 3 if len(values) == 1 else values if len(values) == 3 else (math.nan,) * 3
        if not all(map(math.isfinite, (red, green, blue))) or (key == "std" and min(red, green, blue) <= 0):
            raise EncoderError(f"{uri}: {key} must be one number or three, such as {key}=0.5,0.5,0.5; a std is above 0")
        found[key] = (red, green, blue)
    return tuple(found.items())


def parse_generated(uri: str, rest: str) -> ModelName:
    prefix = uri.partition(":")[0]
    name, _, query = rest.partition("?")
    try:
        options = tuple((key, int(value)) for key, value in parse_qsl(query, strict_parsing=bool(query)))
    except ValueError as error:
        raise EncoderError(f"{uri}: what follows ? must be name=number pairs, such as ?seed=0") from error
    for key, value in options:
        if key not in GENERATED_OPTIONS[prefix] or value < GENERATED_OPTIONS[prefix][key]:
            known = ", ".join(f"{name} (from {least})" for name, least in GENERATED_OPTIONS[prefix].items())
            raise EncoderError(f"{uri}: {key}={value} is not an option of {prefix}: models; they take {known}")
    if prefix == "random":
        return ModelName(uri, "random", name, options=options)
    if not name.isdigit() or int(name) < 1:
        raise EncoderError(f"{uri}: hash: takes a dimension, such as hash:64")
    return ModelName(uri, "hash", name, options=options)


PARSERS: dict[str, Callable[[str, str], ModelName]] = {
    "openai_clip": parse_path,
    "hf_clip": parse_transformers,
    "mixer": parse_path,
    "gguf": parse_gguf,
    "open_clip": parse_open_clip,
    "onnx": parse_onnx,
    "random": parse_generated,
    "hash": parse_generated,
}
