"""A hub cache that stands in for the hub: the configurations and tokenizers that open_clip's architectures ask for.

    python benchmarks/stand_in_hub.py FOLDER
    HF_HUB_CACHE=FOLDER HF_HUB_OFFLINE=1 python benchmarks/architectures.py run RESULTS.jsonl

Text towers of transformers have their published sizes. Tokenizers have the special tokens of the real ones, and know
single letters only. There are no weights: the architectures are tried with random ones.
"""

from __future__ import annotations

import json
import string
import sys
from pathlib import Path
from typing import Any, NamedTuple

import open_clip

COMMIT = "0" * 40
ROBERTA = {
    "model_type": "roberta",
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "vocab_size": 50265,
    "layer_norm_eps": 1e-5,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
XLM_ROBERTA = ROBERTA | {"model_type": "xlm-roberta", "vocab_size": 250002}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
MT5 = {
    "model_type": "mt5",
    "is_encoder_decoder": True,
    "d_model": 768,
    "d_ff": 2048,
    "num_layers": 12,
    "num_heads": 12,
    "vocab_size": 250112,
    "feed_forward_proj": "gated-gelu",
    "pad_token_id": 0,
    "eos_token_id": 1,
}
NLLB = {
    "model_type": "m2m_100",
    "is_encoder_decoder": True,
    "d_model": 1024,
    "encoder_layers": 12,
    "decoder_layers": 12,
    "encoder_ffn_dim": 4096,
    "decoder_ffn_dim": 4096,
    "encoder_attention_heads": 16,
    "decoder_attention_heads": 16,
    "max_position_embeddings": 1024,
    "activation_function": "relu",
    "scale_embedding": True,
    "vocab_size": 256206,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "roberta-base": ROBERTA,
    "xlm-roberta-base": XLM_ROBERTA,
    "xlm-roberta-large": XLM_ROBERTA | LARGE,
    "google/mt5-base": MT5,
    "google/mt5-xl": MT5 | {"d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
    "facebook/nllb-200-distilled-600M": NLLB,
    "facebook/nllb-200-distilled-1.3B": NLLB
    | dict.fromkeys(("encoder_layers", "decoder_layers"), 24)
    | dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 8192),
}


class Specials(NamedTuple):
    """The ids of a tokenizer's special tokens; a text begins with `start` where there is one, and ends with `end`."""

    pad: int
    end: int
    unknown: int
    start: int | None = None


SPECIALS = {
    "google/mt5": Specials(pad=0, end=1, unknown=2),
    "timm/ViT-B-16-SigLIP-i18n": Specials(pad=0, end=1, unknown=2),
    "timm/ViT-B-16-SigLIP2": Specials(pad=0, end=1, unknown=3),
    "timm/ViT-B-16-SigLIP": Specials(pad=1, end=1, unknown=2),
    "timm/": Specials(pad=0, end=1, unknown=3),
    "bert-base-uncased": Specials(pad=0, end=102, unknown=100, start=101),
    "": Specials(pad=1, end=2, unknown=3, start=0),  # of the RoBERTa family, XLM-V, and NLLB
}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for name in sorted(list_names()):
        snapshot = new_snapshot(Path(sys.argv[1]), name)
        (snapshot / "config.json").write_text(json.dumps(CONFIGS.get(name, {})))  # AutoTokenizer wants one
        write_tokenizer(snapshot, name)
        print(name)


def list_names() -> set[str]:
    """Return the repositories of text towers and tokenizers that open_clip's architectures name."""
    texts = [open_clip.get_model_config(architecture)["text_cfg"] for architecture in open_clip.list_models()]
    keys = ("hf_model_name", "hf_tokenizer_name")
    return {text[key] for text in texts for key in keys if key in text}


def new_snapshot(cache: Path, name: str) -> Path:
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True, exist_ok=True)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


def write_tokenizer(folder: Path, name: str) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = next(found for start, found in SPECIALS.items() if name.startswith(start))
    names = {"<end>": specials.end, "<unk>": specials.unknown}
    if specials.pad != specials.end:
        names["<pad>"] = specials.pad
    if specials.start is not None:
        names["<start>"] = specials.start
    letters = {letter: place for place, letter in enumerate(string.printable, start=200)}
    tokenizer = Tokenizer(models.WordLevel(names | letters, unk_token="<unk>"))  # type: ignore[arg-type]
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # type: ignore[assignment]
    begin = "" if specials.start is None else "<start> "
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{begin}$A <end>", special_tokens=list(names.items())
    )
    pad = "<end>" if specials.pad == specials.end else "<pad>"
    known = {"pad_token": pad, "unk_token": "<unk>", "eos_token": "<end>", "sep_token": "<end>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **known).save_pretrained(folder)


if __name__ == "__main__":
    main()
