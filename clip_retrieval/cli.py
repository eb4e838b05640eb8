"""The command `clip-retrieval`: options to configs, results to people or, with --json, to programs."""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

import click

from clip_retrieval import __version__
from clip_retrieval.encoder.export.config import ConvertConfig, QuantizeConfig
from clip_retrieval.errors import ClipRetrievalError
from clip_retrieval.filter.config import FilterConfig
from clip_retrieval.index.config import IndexConfig
from clip_retrieval.inference.config import InferenceConfig, WorkerConfig
from clip_retrieval.interrupts import STOPPED_CODES, StoppedError, stopping_in_time
from clip_retrieval.option_flags import config_options, given_options, with_underscores
from clip_retrieval.options import build_config
from clip_retrieval.tools.config import BenchmarkConfig, ExtractConfig, ModelInfoConfig, SimilarityConfig, ZslConfig

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "token_normalize_func": with_underscores}


class Cli(click.Group):
    """Turns errors that a user can cause into one sentence and exit code 1; bugs keep their traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with stopping_in_time():
                return super().invoke(ctx)
        except ClipRetrievalError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt as stop:
            click.echo(str(stop) or "stopped", err=True)
            ctx.exit(stop.exit_code if isinstance(stop, StoppedError) else StoppedError().exit_code)


@click.group(cls=Cli, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="clip-retrieval")
@click.option("--verbose", is_flag=True, help="Show more of what happens.")
def cli(*, verbose: bool) -> None:
    """Turn pictures and captions into CLIP embeddings, index them, and find things in them.

    Every option can be written --like_this or --like-this, --with value or --with=value; booleans take
    True or False. The required ones may also be given by position.
    """
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.WARNING, format="%(message)s", stream=sys.stderr, force=True
    )
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
    logging.getLogger("clip_retrieval").setLevel(logging.DEBUG if verbose else logging.INFO)


json_option = click.option("--json", "as_json", is_flag=True, help="Print the outcome as json.")


@cli.command()
@config_options(InferenceConfig)
@json_option
def inference(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Embed a folder of pictures, or tars, into OUTPUT_FOLDER.

    A run that was stopped, or killed, goes on where it was when the same command is given again.
    """
    from clip_retrieval.inference.dry_run import estimate_run
    from clip_retrieval.inference.estimate_report import print_estimate
    from clip_retrieval.inference.report import print_summary
    from clip_retrieval.inference.run import run_inference

    config = build_config(InferenceConfig, given_options(options), arguments)
    if config.dry_run:
        estimate = estimate_run(config)
        print_json(estimate.to_json()) if as_json else print_estimate(estimate)
        return
    summary = run_inference(config)
    print_json(summary.to_json()) if as_json else print_summary(summary)


@cli.command("inference.worker")
@config_options(WorkerConfig)
@json_option
def inference_worker(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Make some partitions of a run that is shared out by hand, such as one to a machine."""
    from clip_retrieval.inference.dry_run import estimate_tasks
    from clip_retrieval.inference.estimate_report import print_estimate
    from clip_retrieval.inference.report import print_summary
    from clip_retrieval.inference.run import run_tasks

    config = build_config(WorkerConfig, given_options(options), arguments)
    if config.run.dry_run:
        estimate = estimate_tasks(config)
        print_json(estimate.to_json()) if as_json else print_estimate(estimate)
        return
    summary = run_tasks(config)
    print_json(summary.to_json()) if as_json else print_summary(summary)


@cli.command()
@config_options(IndexConfig)
@json_option
def index(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Build nearest-neighbour indices of an embeddings folder, within the memory given."""
    from clip_retrieval.index.build import build_indices
    from clip_retrieval.index.report import print_indices

    result = build_indices(build_config(IndexConfig, given_options(options), arguments))
    print_json(result.to_json()) if as_json else print_indices(result)


@cli.command("filter")
@config_options(FilterConfig)
@json_option
def filter_command(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Find what a text, a picture or an embedding (.npy) asks for, and export it to OUTPUT_FOLDER."""
    from clip_retrieval.filter.report import print_result
    from clip_retrieval.filter.run import run_filter

    result = run_filter(build_config(FilterConfig, given_options(options), arguments))
    print_json(result.to_json()) if as_json else print_result(result)


@cli.command()
@click.argument("folder", default="demo-run")
@json_option
def demo(*, folder: str, as_json: bool) -> None:
    """Embed, index and query the embedded gallery with the embedded model: everything, without network."""
    from clip_retrieval.demo.run import print_demo, run_demo

    result = run_demo(folder)
    print_json(result.to_json()) if as_json else print_demo(result)


@cli.command()
@config_options(SimilarityConfig)
@json_option
def similarity(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Compare each picture with each text: a table of cosines."""
    from clip_retrieval.tools.report import print_similarities
    from clip_retrieval.tools.similarity import run_similarity

    result = run_similarity(build_config(SimilarityConfig, given_options(options), arguments))
    print_json(result.to_json()) if as_json else print_similarities(result)


@cli.command()
@config_options(ZslConfig)
@json_option
def zsl(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Say which of the labels fits each picture (zero-shot labelling)."""
    from clip_retrieval.tools.report import print_labels
    from clip_retrieval.tools.zero_shot import run_zsl

    result = run_zsl(build_config(ZslConfig, given_options(options), arguments))
    print_json(result.to_json()) if as_json else print_labels(result)


@cli.command()
@config_options(ExtractConfig)
@json_option
def extract(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Write the embeddings of pictures and texts into OUTPUT_FOLDER, as plain npy files."""
    from clip_retrieval.tools.extract import run_extract
    from clip_retrieval.tools.report import print_extracted

    result = run_extract(build_config(ExtractConfig, given_options(options), arguments))
    print_json(result.to_json()) if as_json else print_extracted(result)


@cli.command()
@config_options(BenchmarkConfig)
@json_option
def benchmark(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Measure zero-shot accuracy and speed of models on a FOLDER with a folder of pictures for each class."""
    from clip_retrieval.tools.benchmark import run_benchmark
    from clip_retrieval.tools.benchmark_report import print_benchmark, write_result

    config = build_config(BenchmarkConfig, given_options(options), arguments)
    result = run_benchmark(config)
    if config.output is not None:
        write_result(result, config.output)
    print_json(result.to_json()) if as_json else print_benchmark(result)


@cli.command()
@config_options(ConvertConfig)
@json_option
def convert(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Write a model in another format: onnx (runs without torch), open_clip, hf or gguf; checked before it is kept."""
    from clip_retrieval.encoder.export.convert import run_convert
    from clip_retrieval.tools.model_report import print_converted

    result = run_convert(build_config(ConvertConfig, given_options(options), arguments))
    print_json(result.to_json()) if as_json else print_converted(result)


@cli.command()
@config_options(QuantizeConfig)
@json_option
def quantize(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Write a converted model with fewer bits, and say what that does to its embeddings."""
    from clip_retrieval.encoder.export.quantize import run_quantize
    from clip_retrieval.tools.model_report import print_quantized

    result = run_quantize(build_config(QuantizeConfig, given_options(options), arguments))
    print_json(result.to_json()) if as_json else print_quantized(result)


@cli.group()
def models() -> None:
    """Say which models there are, and what a model is."""


@models.command("list")
@json_option
def models_list(*, as_json: bool) -> None:
    """List the names that --clip_model takes."""
    from clip_retrieval.tools.model_list import list_models, print_models

    result = list_models()
    print_json(result.to_json()) if as_json else print_models(result)


@models.command("info")
@config_options(ModelInfoConfig)
@json_option
def models_info(*, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Open a model, and say what it is."""
    from clip_retrieval.tools.models import describe_model
    from clip_retrieval.tools.report import print_model

    result = describe_model(build_config(ModelInfoConfig, given_options(options), arguments))
    print_json(result.to_json()) if as_json else print_model(result)


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def main() -> None:
    """Run the command line."""
    try:
        cli()
    except SystemExit as end:
        code = 0 if end.code is None else end.code
        if not isinstance(code, int) or not (code in STOPPED_CODES or has_only_memory_to_free()):
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # all is tidy, and threads that are still in native code are not waited for


def has_only_memory_to_free() -> bool:
    """Say whether Python would take half a second to free what the process's end frees at once, and do nothing else."""
    return "openvino" in sys.modules and "wandb" not in sys.modules
