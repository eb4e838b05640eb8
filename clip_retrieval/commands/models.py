"""Commands about models."""

from __future__ import annotations

from typing import Any

import click

from clip_retrieval.commands import json_option, print_json
from clip_retrieval.encoder.export.config import ConvertConfig, QuantizeConfig
from clip_retrieval.option_flags import config_options, given_options
from clip_retrieval.options import build_config
from clip_retrieval.tools.config import ModelInfoConfig


@click.command()
@config_options(ConvertConfig)
@json_option
def convert(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Write a model in another format: onnx (runs without torch), open_clip, hf or gguf; checked before it is kept."""
    from clip_retrieval.commands.reports.models import print_converted
    from clip_retrieval.encoder.export.convert import run_convert

    result = run_convert(build_config(ConvertConfig, given_options(options), arguments))
    print_json(result.to_json()) if as_json else print_converted(result)


@click.command()
@config_options(QuantizeConfig)
@json_option
def quantize(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Write a converted model with fewer bits, and say what that does to its embeddings."""
    from clip_retrieval.commands.reports.models import print_quantized
    from clip_retrieval.encoder.export.quantize import run_quantize

    result = run_quantize(build_config(QuantizeConfig, given_options(options), arguments))
    print_json(result.to_json()) if as_json else print_quantized(result)


@click.group()
def models() -> None:
    """Say which models there are, and what a model is."""


@models.command("list")
@json_option
def models_list(*, as_json: bool) -> None:
    """List the names that --clip_model takes."""
    from clip_retrieval.commands.reports.models import print_models
    from clip_retrieval.tools.model_list import list_models

    result = list_models()
    print_json(result.to_json()) if as_json else print_models(result)


@models.command("info")
@config_options(ModelInfoConfig)
@json_option
def models_info(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Open a model, and say what it is."""
    from clip_retrieval.commands.reports.tools import print_model
    from clip_retrieval.tools.models import describe_model

    result = describe_model(build_config(ModelInfoConfig, given_options(options), arguments))
    print_json(result.to_json()) if as_json else print_model(result)
