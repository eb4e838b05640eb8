"""Commands about models."""

from __future__ import annotations

import click

from clip_retrieval.commands import Outcome, with_config, with_json
from clip_retrieval.encoder.export.config import ConvertConfig, QuantizeConfig, check_source
from clip_retrieval.errors import EncoderError
from clip_retrieval.installed import need_full
from clip_retrieval.tools.config import ModelInfoConfig


@click.command()
@with_config(ConvertConfig)
def convert(config: ConvertConfig) -> Outcome:
    """Write a model in another format: onnx (runs without torch), open_clip, hf or gguf. The result is checked."""
    check_source(config)
    need_full("torch", "convert", EncoderError)
    from clip_retrieval.commands.reports.models import print_converted
    from clip_retrieval.encoder.export.convert import run_convert

    return Outcome(run_convert(config), print_converted)


@click.command()
@with_config(QuantizeConfig)
def quantize(config: QuantizeConfig) -> Outcome:
    """Write a converted model with fewer bits, and measure the effect on its embeddings."""
    need_full("onnx", "quantize", EncoderError)
    from clip_retrieval.commands.reports.models import print_quantized
    from clip_retrieval.encoder.export.quantize import run_quantize

    return Outcome(run_quantize(config), print_quantized)


@click.group()
def models() -> None:
    """List models, and describe one."""


@models.command("list")
@with_json
def models_list() -> Outcome:
    """List the names that --clip_model takes."""
    need_full("open_clip", "the list of models", EncoderError)
    from clip_retrieval.commands.reports.models import print_models
    from clip_retrieval.tools.model_list import list_models

    return Outcome(list_models(), print_models)


@models.command("info")
@with_config(ModelInfoConfig)
def models_info(config: ModelInfoConfig) -> Outcome:
    """Open a model, and describe it."""
    from clip_retrieval.commands.reports.tools import print_model
    from clip_retrieval.tools.models import describe_model

    return Outcome(describe_model(config), print_model)
