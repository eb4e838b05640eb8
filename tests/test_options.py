"""Flags in every spelling that clip-retrieval 2 took (python-fire's), to configs."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, TypeVar

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_retrieval.cli import CONTEXT
from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.errors import ConfigError
from clip_retrieval.filter.config import FilterConfig
from clip_retrieval.index.config import IndexConfig, ScoreConfig
from clip_retrieval.inference.config import InferenceConfig, WorkerConfig
from clip_retrieval.option_flags import config_options, given_options
from clip_retrieval.options import build_config, flags_of, from_json, to_json
from clip_retrieval.query.config import QueryConfig, SelectionConfig
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.tools.config import BenchmarkConfig, ExtractConfig, RuntimeConfig, ZslConfig

T = TypeVar("T")
PATHS = ("in", "out")


def parse(config: type[T], *words: str) -> T:
    """Return the config that these words of a command line make."""
    parsed: list[T] = []

    @click.command(context_settings=CONTEXT)
    @config_options(config)
    def probe(*, arguments: tuple[str, ...], **options: Any) -> None:
        parsed.append(build_config(config, given_options(options), arguments))

    probe(list(words), standalone_mode=False)
    return parsed[0]


def inference(*words: str) -> InferenceConfig:
    return parse(InferenceConfig, *PATHS, *words)


def worker(*words: str) -> WorkerConfig:
    return parse(WorkerConfig, "--input_dataset=in", "--output_folder=out", "--output_partition_count=4", *words)


@pytest.mark.parametrize(
    "words",
    [
        ["--batch_size", "7"],
        ["--batch-size", "7"],
        ["--batch_size=7"],
        ["--batch-size=7"],
    ],
)
def test_underscores_dashes_and_the_equals_sign_are_one_flag(words: list[str]) -> None:
    assert inference(*words).batch_size == 7


@pytest.mark.parametrize("word", ["False", "false", "0", "no"])
def test_a_boolean_takes_a_value_for_false(word: str) -> None:
    assert inference("--enable_text", word).source.enable_text is False
    assert inference(f"--enable-text={word}").source.enable_text is False


@pytest.mark.parametrize("word", ["True", "true", "1", "yes"])
def test_a_boolean_takes_a_value_for_true(word: str) -> None:
    assert inference("--enable_metadata", word).source.enable_metadata is True


@pytest.mark.parametrize(
    "words", [["--enable_metadata"], ["--enable-metadata"], ["--enable_metadata", "--batch_size=3"]]
)
def test_a_bare_boolean_is_true(words: list[str]) -> None:
    assert inference(*words).source.enable_metadata is True


@pytest.mark.parametrize("word", ["--noenable_text", "--no-enable-text", "--noenable-text", "--no_enable_text"])
def test_a_boolean_is_switched_off_by_no(word: str) -> None:
    assert inference(word).source.enable_text is False


def test_a_boolean_refuses_other_words_by_name() -> None:
    with pytest.raises(ConfigError, match="enable_text takes True or False, not 'maybe'"):
        inference("--enable_text", "maybe")


@pytest.mark.parametrize("words", [["--cache_path=None"], ["--cache-path", "None"], ["--output_partition_count=None"]])
def test_none_is_a_literal(words: list[str]) -> None:
    assert inference(*words) == inference()


def test_none_is_refused_where_a_value_is_needed() -> None:
    with pytest.raises(ConfigError, match="write_batch_size cannot be None"):
        inference("--write_batch_size=None")


@pytest.mark.parametrize("written", ["[0,2]", "[0, 2]", "(0,2)", "0,2", "0, 2", "['0','2']", '["0", "2"]', " [0,2] "])
def test_a_list_is_a_literal_in_every_form(written: str) -> None:
    assert worker(f"--tasks={written}").tasks == (0, 2)
    assert worker("--tasks", written).tasks == (0, 2)


@pytest.mark.parametrize("written", ["3", "[3]", "3,", "(3,)"])
def test_a_list_of_one_may_be_the_item(written: str) -> None:
    assert worker(f"--tasks={written}").tasks == (3,)


@pytest.mark.parametrize("given_tasks", [[0, 2], (0, 2), range(0, 3, 2), "[0,2]"])
def test_a_list_from_python_may_be_any_sequence(given_tasks: object) -> None:
    values = {"input_dataset": "in", "output_folder": "out", "output_partition_count": 3, "tasks": given_tasks}
    assert build_config(WorkerConfig, values).tasks == (0, 2)


@pytest.mark.parametrize("written", ["[0.5]", "0.5", "[None]", "[True]", "zero", "[[0]]"])
def test_tasks_that_are_no_whole_numbers_are_refused(written: str) -> None:
    with pytest.raises(ConfigError, match="tasks takes whole numbers with commas between, such as 1,2, not"):
        worker(f"--tasks={written}")


@pytest.mark.parametrize("value", [2.5, "2.5", "many", True, [3]])
def test_a_whole_number_is_never_rounded_from_something_else(value: object) -> None:
    with pytest.raises(ConfigError, match="batch_size takes a whole number"):
        build_config(InferenceConfig, {"batch_size": value}, PATHS)


def test_inference_takes_its_arguments_by_position_in_upstreams_order() -> None:
    words = ["in", "out", "webdataset", "None", "8", "2", "True", "False", "True", "500", "png", "cap", "demo"]
    config = parse(InferenceConfig, *words)
    source = SourceConfig(
        input_dataset="in", input_format="webdataset", enable_image=False, enable_metadata=True,
        wds_image_key="png", wds_caption_key="cap",
    )  # fmt: skip
    encoder = EncoderConfig(clip_model="demo")
    assert config == InferenceConfig(
        source=source, output_folder="out", encoder=encoder, batch_size=8, num_prepro_workers=2, write_batch_size=500
    )


def test_inference_worker_takes_its_arguments_by_position_in_upstreams_order() -> None:
    words = ["[1]", "in", "out", "3", "webdataset", "None", "8", "2", "True", "False", "True", "png", "cap", "demo"]
    config = parse(WorkerConfig, *words)
    source = SourceConfig(
        input_dataset="in", input_format="webdataset", enable_image=False, enable_metadata=True,
        wds_image_key="png", wds_caption_key="cap",
    )  # fmt: skip
    run = InferenceConfig(
        source=source, output_folder="out", encoder=EncoderConfig(clip_model="demo"), batch_size=8,
        num_prepro_workers=2, output_partition_count=3,
    )  # fmt: skip
    assert config == WorkerConfig(tasks=(1,), run=run)


def test_index_takes_its_arguments_by_position_in_upstreams_order() -> None:
    config = parse(IndexConfig, "emb", "ix", "2G", "8G", "False", "a", "b", "3")
    assert config == IndexConfig(
        embeddings_folder="emb", index_folder="ix", max_index_memory_usage="2G", current_memory_available="8G",
        copy_metadata=False, image_subfolder="a", text_subfolder="b", nb_cores=3,
    )  # fmt: skip


def test_filter_takes_its_arguments_by_position_in_upstreams_order() -> None:
    config = parse(FilterConfig, "cat", "out", "ix", "7", "0.3")
    assert config == FilterConfig(
        asked=QueryConfig(query=("cat",)),
        output_folder="out",
        indice_folder="ix",
        selection=SelectionConfig(num_results=7, threshold=0.3),
    )


def test_flags_may_stand_before_between_and_after_the_positional_arguments() -> None:
    config = parse(FilterConfig, "--num_results=7", "cat", "--threshold", "0.3", "out", "ix", "--copy_images")
    assert config == FilterConfig(
        asked=QueryConfig(query=("cat",)),
        output_folder="out",
        indice_folder="ix",
        selection=SelectionConfig(num_results=7, threshold=0.3),
    )


def test_positional_arguments_fill_the_names_that_no_flag_gave_as_in_fire() -> None:
    config = parse(FilterConfig, "--query", "cat", "out", "ix")
    assert config == FilterConfig(asked=QueryConfig(query=("cat",)), output_folder="out", indice_folder="ix")


def test_too_many_positional_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match="too many arguments: \\['surplus'\\]"):
        parse(FilterConfig, "cat", "out", "ix", "7", "0.3", "surplus")


@pytest.mark.parametrize("words", [["--threshold", "-0.2"], ["--threshold=-0.2"]])
def test_a_negative_number_is_a_value_and_no_flag(words: list[str]) -> None:
    assert parse(FilterConfig, "cat", "out", "ix", *words).selection.threshold == -0.2


@pytest.mark.parametrize("query", ["123", "True", "1.5", "[1,2]", "{'a': 1}", "-"])
def test_a_query_that_looks_like_a_literal_stays_a_text(query: str) -> None:
    assert parse(FilterConfig, f"--query={query}", "--output_folder=out", "--indice_folder=ix").asked.query == (query,)
    assert parse(FilterConfig, query, "out", "ix").asked.query == (query,)


def test_a_query_that_is_a_number_in_python_becomes_its_text() -> None:
    assert build_config(FilterConfig, {"query": 123, "output_folder": "o", "indice_folder": "i"}).asked.query == (
        "123",
    )


@pytest.mark.parametrize(
    "words", [["--input_folder", "emb", "--output_folder", "ix"], ["--input-folder=emb", "--output-folder=ix"]]
)
def test_index_takes_the_spellings_of_the_older_readme(words: list[str]) -> None:
    assert parse(IndexConfig, *words) == IndexConfig(embeddings_folder="emb", index_folder="ix")


def test_an_alias_and_its_name_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="given twice"):
        build_config(IndexConfig, {"input_folder": "a", "embeddings_folder": "b", "index_folder": "c"})


@pytest.mark.parametrize(
    "words",
    [
        ["--use_mclip"],
        ["--use_mclip", "True"],
        ["--use-mclip=True"],
        ["--mclip_model", "xlm"],
    ],
)  # fmt: skip
def test_a_dropped_flag_is_refused_by_name_with_the_reason(words: list[str]) -> None:
    name = words[0].partition("=")[0].lstrip("-").replace("-", "_")
    with pytest.raises(ConfigError, match=f"--{name} is not supported: .{{20}}"):
        inference(*words)


@pytest.mark.parametrize("words", [["--use_jit"], ["--use_jit=True"]])
def test_a_dropped_flag_that_changes_no_result_is_warned_of(words: list[str], caplog: pytest.LogCaptureFixture) -> None:
    assert inference(*words) == inference()
    assert "--use_jit changes nothing: torch has deprecated torch.jit" in caplog.text


@pytest.mark.parametrize(
    "words",
    [
        ["--use_mclip", "False"],
        ["--use_mclip=None"],
        ["--mclip_model=sentence-transformers/clip-ViT-B-32-multilingual-v1"],
        ["--use_jit=False"],
        ["--use-jit", "False"],
        ["--slurm_nodes=None"],
        ["--slurm_verbose_wait=False"],
        ["--nouse_jit"],
        ["--nouse_mclip"],
    ],
)  # fmt: skip
def test_a_dropped_flag_with_a_value_that_asks_for_nothing_is_accepted(words: list[str]) -> None:
    assert inference(*words) == inference()


def test_an_unknown_flag_is_a_usage_error() -> None:
    with pytest.raises(click.NoSuchOption):
        inference("--subset_sizes=3")


def test_an_unknown_keyword_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="there is no option subset_sizes"):
        build_config(InferenceConfig, {"subset_sizes": 3}, PATHS)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match="input_dataset and output_folder must be given"):
        parse(InferenceConfig)


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (InferenceConfig, {"batch_size": 0}, "batch_size"),
        (InferenceConfig, {"num_prepro_workers": -1}, "num_prepro_workers"),
        (InferenceConfig, {"output_partition_count": 0}, "output_partition_count"),
        (InferenceConfig, {"write_batch_size": 0}, "write_batch_size"),
        (InferenceConfig, {"max_skipped": 1.5}, "max_skipped"),
        (InferenceConfig, {"enable_text": False, "enable_image": False}, "enable_text and enable_image"),
        (InferenceConfig, {"input_format": "lmdb"}, "input_format takes one of files, video, webdataset, "),
        (InferenceConfig, {"precision": "fp8"}, "precision takes one of"),
        (IndexConfig, {"nb_cores": 0}, "nb_cores"),
        (IndexConfig, {"engine": "annoy"}, "engine takes one of"),
        (
            IndexConfig,
            {"max_index_memory_usage": "32G", "engine": "autofaiss"},
            "max_index_memory_usage 32G is more than",
        ),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(config: type[Any], values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(config, values, PATHS)


@pytest.mark.parametrize(
    "values",
    [
        {"num_results": 0},
        {"query": "  "},
        {"modality": "audio"},
        {"threshold": "high"},
        {"threshold": 5},
        {"threshold": "nan"},
    ],
)
def test_a_filter_value_that_cannot_be_is_refused_by_name(values: dict[str, object]) -> None:
    (name,) = values
    with pytest.raises(ConfigError, match=name):
        build_config(FilterConfig, {"query": "cat", "output_folder": "o", "indice_folder": "i"} | values)


def test_tasks_outside_of_the_partitions_are_named() -> None:
    with pytest.raises(ConfigError, match="tasks \\[4\\] are outside of 0 to 3"):
        worker("--tasks=[0,4]")


WORDS = st.text(min_size=1)
SOURCES = st.builds(
    SourceConfig,
    input_dataset=WORDS,
    input_format=st.sampled_from(["files", "webdataset"]),
    enable_text=st.booleans(),
    enable_metadata=st.booleans(),
    require_all=st.booleans(),
    wds_image_key=st.none() | WORDS,
    cache_path=st.none() | WORDS,
)
RUNS = st.builds(
    InferenceConfig,
    source=SOURCES,
    output_folder=WORDS,
    encoder=st.builds(EncoderConfig, clip_model=WORDS, precision=st.sampled_from(["auto", "fp32", "bf16", "fp16"])),
    batch_size=st.integers(1),
    num_prepro_workers=st.none() | st.integers(0),
    output_partition_count=st.none() | st.integers(1),
    max_skipped=st.floats(0, 1),
)


@given(RUNS)
def test_a_config_survives_json(config: InferenceConfig) -> None:
    assert from_json(InferenceConfig, json.loads(json.dumps(to_json(config)))) == config


@given(RUNS, st.lists(st.integers(0, 2)))
def test_a_worker_config_survives_json(run: InferenceConfig, tasks: list[int]) -> None:
    config = WorkerConfig(tasks=tuple(tasks), run=replace(run, output_partition_count=3))
    assert from_json(WorkerConfig, json.loads(json.dumps(to_json(config)))) == config


def test_json_of_a_later_version_with_an_unknown_name_is_read() -> None:
    config = IndexConfig(embeddings_folder="a", index_folder="b")
    assert from_json(IndexConfig, to_json(config) | {"from_the_future": 1}) == config


def test_a_repeatable_flag_gives_an_item_each_time_and_keeps_its_commas() -> None:
    config = parse(ZslConfig, "a.jpg", "--label", "a dog, running", "--label=[1,2]", "--text", "None")
    assert config.label == ("a dog, running", "[1,2]", "None")


def test_a_repeatable_last_positional_takes_all_that_are_left() -> None:
    assert parse(ZslConfig, "a.jpg", "b.jpg", "--label=x").image == ("a.jpg", "b.jpg")
    assert parse(ExtractConfig, "out", "a.jpg", "b.jpg") == ExtractConfig(output_folder="out", image=("a.jpg", "b.jpg"))
    with pytest.raises(ConfigError, match="too many arguments"):
        parse(ZslConfig, "a.jpg", "--image=b.jpg", "--label=x")


def test_a_repeatable_value_from_python_may_be_one_text_or_a_sequence() -> None:
    values = {"image": "a, b.jpg", "label": ["x", "y, z"]}
    config = build_config(ZslConfig, values)
    assert (config.image, config.label) == (("a, b.jpg",), ("x", "y, z"))


def test_a_repeatable_flag_that_is_not_given_keeps_its_default() -> None:
    assert parse(BenchmarkConfig, "in").clip_model == ("ViT-B/32",)
    assert parse(BenchmarkConfig, "in", "-m", "demo", "--clip_model", "hash:8").clip_model == ("demo", "hash:8")


@pytest.mark.parametrize("words", [["-m", "demo"], ["--model", "demo"], ["--model=demo"], ["--clip-model=demo"]])
def test_a_group_may_add_spellings_to_its_options_for_one_command(words: list[str]) -> None:
    config = parse(ZslConfig, "a.jpg", "--label=x", *words, "--precision=bf16")
    assert config.embed.encoder == EncoderConfig(clip_model="demo", precision="bf16")


@pytest.mark.parametrize("word", ["-m", "--model"])
def test_the_spellings_that_a_group_adds_are_not_the_other_commands(word: str) -> None:
    with pytest.raises(click.NoSuchOption):
        inference(word, "demo")


def test_an_option_of_another_config_has_its_default_help_and_name() -> None:
    theirs = {flag.name: flag for flag in flags_of(EncoderConfig)}
    for flag in flags_of(RuntimeConfig):
        assert (flag.default, flag.help) == (theirs[flag.name].default, theirs[flag.name].help)


REQUIRED: dict[type[Any], dict[str, object]] = {
    InferenceConfig: {"input_dataset": "in", "output_folder": "out"},
    IndexConfig: {"embeddings_folder": "in", "index_folder": "out"},
    ScoreConfig: {"embeddings_folder": "in", "index_folder": "out"},
    FilterConfig: {"query": "a dog", "output_folder": "out", "indice_folder": "in"},
    ZslConfig: {"image": "in", "label": "a dog"},
    BenchmarkConfig: {"folder": "in"},
}
BOUNDED = [
    (config, flag.name, flag.facts["least"])
    for config in REQUIRED
    for flag in flags_of(config)
    if "least" in flag.facts
]


@pytest.mark.parametrize(("config", "name", "least"), BOUNDED, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_value_below_the_least_of_its_option_is_refused(config: type[Any], name: str, least: int) -> None:
    message = f"{name} must be at least {least}, not {least - 1}"
    with pytest.raises(ConfigError, match=message):
        build_config(config, {**REQUIRED[config], name: least - 1})


def test_every_command_with_a_number_of_rows_cores_or_requests_has_a_least_one() -> None:
    assert {config for config, *_ in BOUNDED} == set(REQUIRED)
    assert len(BOUNDED) > 20


def test_nan_is_below_every_least_value() -> None:
    with pytest.raises(ConfigError, match="reader_timeout must be at least 0, not nan"):
        build_config(InferenceConfig, {**REQUIRED[InferenceConfig], "reader_timeout": float("nan")})


def test_options_that_shape_what_is_written_may_not_change_between_runs() -> None:
    fixed = {flag.name for flag in flags_of(InferenceConfig) if not flag.facts.get("may_change")}
    assert {
        "input_dataset", "input_format", "clip_model", "precision", "enable_text", "enable_image", "enable_metadata",
        "require_all", "wds_image_key", "wds_caption_key", "decode", "exif_orientation", "max_pixels",
        "fetch_max_bytes",
    } <= fixed  # fmt: skip
    assert not fixed & {"output_folder", "device", "num_prepro_workers", "batch_size", "cache_path", "fetch_retries"}
