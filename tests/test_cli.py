"""The command line from outside: exit codes, one sentence for an error, and the flags of clip-retrieval 2."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import clip_retrieval
from clip_retrieval.cli import cli
from clip_retrieval.commands import Outcome
from clip_retrieval.errors import ConfigError, EncoderError, IndexBuildError, QueryError, SourceError

MODEL = "hash:16?size=32"
LIGHT = ("--clip_model", MODEL, "--num_prepro_workers", "0", "--device", "cpu")
Cli = Callable[..., Result]
COMMANDS = (
    *("inference", "inference.worker", "index", "index score", "index_combiner", "filter", "demo", "similarity", "zsl"),
    *("extract", "benchmark"),
)

# Every flag of clip-retrieval 2.45, with a value that means something else than its default.
INFERENCE_FLAGS = {
    "input_dataset": "in", "output_folder": "out", "input_format": "webdataset", "cache_path": "cache",
    "batch_size": "8", "num_prepro_workers": "2", "enable_text": "False", "enable_image": "False",
    "enable_metadata": "True", "write_batch_size": "1000", "wds_image_key": "png", "wds_caption_key": "cap",
    "clip_model": "ViT-L/14", "mclip_model": "xlm", "use_mclip": "True", "use_jit": "True",
    "distribution_strategy": "pyspark", "wds_number_file_per_input_file": "100", "output_partition_count": "2",
    "wandb_project": "mine", "enable_wandb": "True", "clip_cache_path": "models", "slurm_job_name": "job",
    "slurm_partition": "gpu", "slurm_nodes": "2", "slurm_job_comment": "x", "slurm_nodelist": "a", "slurm_exclude": "b",
    "slurm_job_timeout": "60", "slurm_cache_path": "c", "slurm_verbose_wait": "True",
}  # fmt: skip
WORKER_FLAGS = {"tasks": "[0,1]"} | {
    name: INFERENCE_FLAGS[name]
    for name in (
        "input_dataset", "output_folder", "output_partition_count", "input_format", "cache_path", "batch_size",
        "num_prepro_workers", "enable_text", "enable_image", "enable_metadata", "wds_image_key", "wds_caption_key",
        "clip_model", "mclip_model", "use_mclip", "use_jit", "clip_cache_path",
    )
}  # fmt: skip
INDEX_FLAGS = {
    "embeddings_folder": "in", "index_folder": "ix", "max_index_memory_usage": "1G", "current_memory_available": "2G",
    "copy_metadata": "False", "image_subfolder": "a", "text_subfolder": "b", "nb_cores": "1",
}  # fmt: skip
FILTER_FLAGS = {"query": "cat", "output_folder": "out", "indice_folder": "ix", "num_results": "3", "threshold": "0.1"}
UPSTREAM = [
    (command, name, value)
    for command, flags in (
        ("inference", INFERENCE_FLAGS),
        ("inference.worker", WORKER_FLAGS),
        ("index", INDEX_FLAGS),
        ("filter", FILTER_FLAGS),
    )
    for name, value in flags.items()
]
REFUSED = {"use_mclip", "mclip_model"}


@pytest.fixture
def run() -> Iterator[Cli]:
    """Give a function that runs the command line; the handlers that it installs are removed again."""
    level = logging.getLogger("clip_retrieval").level
    yield lambda *words: CliRunner().invoke(cli, [str(word) for word in words])
    logging.getLogger().handlers.clear()
    logging.getLogger("clip_retrieval").setLevel(level)


def assert_one_sentence(result: Result, *parts: str) -> None:
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    assert result.output.splitlines()[-1].startswith("Error: ")
    assert result.output.count("Error: ") == 1
    for part in parts:
        assert part in result.output


@pytest.mark.parametrize(("command", "name", "value"), UPSTREAM)
def test_every_flag_of_clip_retrieval_2_is_known_or_refused_by_name(
    run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str, value: str
) -> None:
    monkeypatch.chdir(tmp_path)  # it is empty, so every run ends at its missing input at the latest
    result = run(command, f"--{name}={value}")
    assert_one_sentence(result)
    assert (f"--{name} is not supported: " in result.output) == (name in REFUSED)


def test_an_unknown_flag_is_a_usage_error_with_exit_code_2(run: Cli) -> None:
    result = run("inference", "in", "out", "--subset_sizes", "3")
    assert result.exit_code == 2
    assert "--subset_sizes" in result.output


def test_an_unknown_command_is_a_usage_error_with_exit_code_2(run: Cli) -> None:
    assert run("frobnicate").exit_code == 2


@pytest.mark.parametrize("command", ["inference", "index"])
def test_options_may_follow_the_folders(run: Cli, tmp_path: Path, command: str) -> None:
    result = run(command, tmp_path / "no", tmp_path / "out", "--json")
    assert_one_sentence(result, f"there is no folder {tmp_path / 'no'}")


@pytest.mark.parametrize("separator", [(), ("--",)])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run: Cli, command: str, separator: tuple[str, ...]) -> None:
    result = run(*command.split(), *separator, "--help")
    assert result.exit_code == 0
    assert "--json" in result.output


def test_the_three_commands_work_with_upstreams_spellings_from_pictures_to_hits(
    run: Cli, tmp_path: Path, write_pictures: Callable[[Path, int], Path]
) -> None:
    write_pictures(tmp_path / "in", 3)
    first = run("inference", tmp_path / "in", tmp_path / "emb", "--enable-metadata", "--cache_path=None", *LIGHT)
    second = run("index", f"--input_folder={tmp_path / 'emb'}", "--output-folder", tmp_path / "ix", "--engine=faiss")
    third = run("filter", "picture number 1", tmp_path / "out", tmp_path / "ix", "2", "None")
    assert [first.exit_code, second.exit_code, third.exit_code] == [0, 0, 0], third.output
    assert "2 hits for 'picture number 1'" in third.output


def test_the_functions_take_the_same_flags_as_keywords(
    tmp_path: Path, write_pictures: Callable[[Path, int], Path]
) -> None:
    source, emb, ix = (str(tmp_path / name) for name in ("in", "emb", "ix"))
    write_pictures(tmp_path / "in", 3)
    clip_retrieval.clip_inference(
        input_dataset=source, output_folder=emb, clip_model=MODEL, num_prepro_workers=0, enable_text=True, use_jit=False
    )
    built = clip_retrieval.clip_index(input_folder=emb, output_folder=ix, engine="faiss", nb_cores=1)
    hits = clip_retrieval.clip_filter(
        query="picture number 1", output_folder=str(tmp_path / "out"), indice_folder=ix, num_results=1, modality="text"
    )
    assert set(built.infos) == {"image", "text"}
    assert hits.caption.tolist() == ["picture number 1"]


def test_the_functions_raise_errors_of_one_tree(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no option bogus"):
        clip_retrieval.clip_inference("in", "out", bogus=1)
    with pytest.raises(ConfigError, match="use_mclip is not supported"):
        clip_retrieval.clip_inference("in", "out", use_mclip=True)
    with pytest.raises(SourceError, match="there is no folder"):
        clip_retrieval.clip_inference(str(tmp_path / "none"), str(tmp_path / "out"), clip_model=MODEL)
    with pytest.raises(EncoderError, match="there is no model 'ViT-Z/99'"):
        clip_retrieval.clip_inference(str(tmp_path), str(tmp_path / "out"), clip_model="ViT-Z/99")
    with pytest.raises(IndexBuildError, match="there is no folder"):
        clip_retrieval.clip_index(str(tmp_path / "none"), str(tmp_path / "ix"))
    with pytest.raises(QueryError, match="there is no index folder"):
        clip_retrieval.clip_filter("cat", str(tmp_path / "out"), str(tmp_path / "none"))


def test_json_is_all_that_stdout_gets(run: Cli, tmp_path: Path, write_pictures: Callable[[Path, int], Path]) -> None:
    write_pictures(tmp_path / "in", 2)
    first = run("inference", tmp_path / "in", tmp_path / "emb", *LIGHT, "--json")
    second = run("index", tmp_path / "emb", tmp_path / "ix", "--engine", "faiss", "--json")
    third = run("filter", "cat", tmp_path / "out", tmp_path / "ix", "--json")
    assert json.loads(first.stdout)["sample_count"] == 2
    assert json.loads(second.stdout)["indices"]["image"]["nb vectors"] == 2
    assert [hit["rank"] for hit in json.loads(third.stdout)["results"]] == [1, 2]


def test_an_outcome_lives_as_long_as_the_list_that_the_command_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIP_RETRIEVAL_CACHE", str(tmp_path))
    kept: list[object] = []
    assert CliRunner().invoke(cli, ["search", "--list"], obj=kept).exit_code == 0
    assert [type(outcome) for outcome in kept] == [Outcome]


def test_a_missing_input_is_one_sentence(run: Cli, tmp_path: Path) -> None:
    result = run("inference", tmp_path / "none", tmp_path / "out", *LIGHT)
    assert_one_sentence(result, f"there is no folder {tmp_path / 'none'}")


def test_an_input_without_samples_is_one_sentence(run: Cli, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    assert_one_sentence(run("inference", tmp_path / "in", tmp_path / "out", *LIGHT), str(tmp_path / "in"))


def test_an_unknown_format_is_one_sentence(run: Cli) -> None:
    result = run("inference", "in", "out", "--input_format", "lmdb")
    assert_one_sentence(result, "input_format", "files, video, webdataset, parquet", "'lmdb'")


def test_an_output_that_cannot_be_written_is_one_sentence(
    run: Cli, tmp_path: Path, write_pictures: Callable[[Path, int], Path]
) -> None:
    write_pictures(tmp_path / "in", 1)
    (tmp_path / "file").write_text("in the way")
    result = run("inference", tmp_path / "in", tmp_path / "file" / "out", *LIGHT)
    assert_one_sentence(result, "cannot write to", str(tmp_path / "file"))


def test_an_unknown_model_is_one_sentence(run: Cli, tmp_path: Path) -> None:
    result = run("inference", tmp_path, tmp_path / "out", "--clip_model", "ViT-Z/99")
    assert_one_sentence(result, "there is no model 'ViT-Z/99'", "open_clip:ARCH/TAG")


def test_a_broken_manifest_is_one_sentence_that_names_it(run: Cli, tmp_path: Path) -> None:
    (tmp_path / "img_emb").mkdir()
    np.save(tmp_path / "img_emb" / "img_emb_0.npy", np.eye(4, dtype=np.float16))
    (tmp_path / "manifest.json").write_text("{not json")
    result = run("index", tmp_path, tmp_path / "ix", "--engine", "faiss")
    assert_one_sentence(result, f"{tmp_path}/manifest.json is not valid JSON")
    assert not (tmp_path / "ix" / "image.index").exists()


def test_a_manifest_of_a_later_format_is_one_sentence(run: Cli, tmp_path: Path) -> None:
    (tmp_path / "img_emb").mkdir()
    np.save(tmp_path / "img_emb" / "img_emb_0.npy", np.eye(4, dtype=np.float16))
    (tmp_path / "manifest.json").write_text('{"format_version": 99, "encoder": null}')
    result = run("index", tmp_path, tmp_path / "ix", "--engine", "faiss")
    assert_one_sentence(result, "newer clip-retrieval")
    assert not (tmp_path / "ix" / "image.index").exists()


def test_small_commands_from_pictures_to_tables(
    run: Cli, tmp_path: Path, write_pictures: Callable[[Path, int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_pictures(Path("in"), 3)
    pictures = sorted(folder.glob("*.jpg"))
    first = run("similarity", *pictures, "--text", "a dog, running", "--text=cat", "-m", MODEL, "--json")
    assert json.loads(first.stdout)["texts"] == ["a dog, running", "cat"]
    assert np.shape(json.loads(first.stdout)["cosines"]) == (3, 2)
    second = run("zsl", folder, "--label", "dog", "--text", "cat", "--model", MODEL, "--top-k", "1", "--json")
    assert json.loads(second.stdout)["labels"] == ["dog", "cat"]
    assert [len(image["labels"]) for image in json.loads(second.stdout)["images"]] == [1, 1, 1]
    third = run("extract", "out", *pictures, "--text", "a, b", "--clip_model", MODEL, "--batch_size", "2")
    assert third.output == "3 pictures and 1 text embedded in out (16 dimensions)\n"
    assert len(np.load(tmp_path / "out" / "image_embeddings.npy")) == 3
    for shown in (run("similarity", folder, "--text=cat", "-m", MODEL), run("zsl", folder, "--label=a", "-m", MODEL)):
        assert shown.exit_code == 0, shown.output
        assert "in/00001.jpg" in shown.output
    assert "note: with one label, softmax is always 1; give more labels" in shown.output


def test_benchmark_compares_models_and_writes_a_page(
    run: Cli, tmp_path: Path, write_pictures: Callable[[Path, int], Path]
) -> None:
    for name in ("cat", "dog"):
        write_pictures(tmp_path / "data" / name, 3)
    page = tmp_path / "result.md"
    result = run("benchmark", tmp_path / "data", "-m", MODEL, "-m", "hash:8", "--output", page, "--json")
    assert [score["model"] for score in json.loads(result.stdout)["models"]] == [MODEL, "hash:8"]
    assert f"| {MODEL} | 6 |" in page.read_text(encoding="utf-8")
    assert "acc@2" in run("benchmark", tmp_path / "data", "-m", MODEL).output


def test_models_are_listed_and_told(run: Cli) -> None:
    listed = run("models", "list")
    assert "ViT-B/32" in listed.output
    assert "ViT-B-32  openai, laion400m_e31" in listed.output
    assert json.loads(run("models", "list", "--json").stdout)["embedded"] == ["demo"]
    assert json.loads(run("models", "info", MODEL, "--json").stdout)["dimension"] == 16
    assert "fingerprint" in run("models", "info", "-m", MODEL).output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["similarity", "--text", "a"], "similarity is between pictures and texts: give at least one --image and one"),
        (["similarity", "none.jpg", "--text", "a", "-m", MODEL], "there is no file or folder none.jpg"),
        (["zsl", "none.jpg"], "there is no label to choose: give --label for each, or --labels_file"),
        (["zsl", "a.jpg", "--label=a", "--template=b"], "the template 'b' has no place for the label; write {} where"),
        (["zsl", "broken.jpg", "--label=a", "-m", MODEL], "the picture cannot be used: broken.jpg: no picture format"),
        (["extract", "out"], "there is nothing to embed: give at least one --image, --text or --text_file"),
        (["extract"], "output_folder must be given"),
        (["extract", "out", "broken.jpg", "-m", MODEL], "the picture cannot be used: broken.jpg: no picture format"),
        (["benchmark", "none", "-m", MODEL], "there is no folder none"),
        (["benchmark", ".", "-m", MODEL], ". holds 0 folders with pictures; a benchmark needs two or more, each named"),
        (["benchmark", ".", "surplus"], "too many arguments: ['surplus'] are left over"),
        (["models", "info"], "clip_model must be given"),
        (["models", "info", "ViT-Z/99"], "there is no model 'ViT-Z/99'; a model is"),
    ],
)
def test_what_goes_wrong_in_a_small_command_is_one_sentence(
    run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    assert_one_sentence(run(*words), f"Error: {sentence}")
