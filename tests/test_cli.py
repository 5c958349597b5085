"""The command line, as people use it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fastconv import testing
from fastconv.cli import app

TINY = "n1 c2x9x9 k3x3x3 s1 p1 f32"


def call(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.output


def test_compare_writes_page_table_and_json(tmp_path: Path) -> None:
    page = tmp_path / "here.html"
    text = call("compare", "--problem", TINY, "--repeat", "2", "--output", str(page))
    assert "agree" in text
    assert page.read_text().startswith("<!doctype html>")
    assert TINY in json.loads((tmp_path / "here.json").read_text())["rows"][0]["problem"]
    assert "im2col" in (tmp_path / "here.md").read_text()


def test_compare_against_an_earlier_run(tmp_path: Path) -> None:
    page, early = str(tmp_path / "a.html"), tmp_path / "early.json"
    arguments = (
        "compare",
        "--problem",
        TINY,
        "--repeat",
        "2",
        "--output",
        page,
        "--backend",
        "naive",
        "--gradients",
    )
    call(*arguments, "--json", str(early))
    data = json.loads(early.read_text())
    assert {row["op"] for row in data["rows"]} == {"conv", "conv input grad", "conv weight grad"}
    for row in data["rows"]:
        row["seconds"] *= 1000
    early.write_text(json.dumps(data))
    assert "nothing is slower" in call(*arguments, "--against", str(early))
    for row in data["rows"]:
        row["seconds"] /= 1e6
    early.write_text(json.dumps(data))
    assert "Slower than before by more than 25%" in call(
        *arguments, "--against", str(early), "--fail-slower", "25%", code=1
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("compare", "--workload", "resnet"), "workload: got 'resnet'"),
        (("compare", "--problem", "n1 nonsense"), "cannot read 'nonsense'"),
        (("compare", "--problem", TINY, "--workload", "lenet"), "expected one of them"),
        (("compare", "--problem", TINY, "--backend", "cupy"), "'cupy' is not available"),
        (("compare", "--problem", TINY, "--backend", "torch"), "--backend: got 'torch'"),
        (("compare", "--problem", TINY, "--threads", "0"), "--threads: got 0"),
        (("compare", "--problem", TINY, "--against", "missing.json"), "missing.json"),
        (("compare", "--problem", TINY, "--fail-slower", "fast"), "--fail-slower: got 'fast'"),
        (("compare", "--problem", TINY, "--output", "no/such/folder.html"), "--output"),
        (("check", "--problem", "max n1"), "needs c<channels>"),
        (("check", "--backend", "auto"), "got 'auto'"),
        (("explain", "n1 c3x8x8 k4x3x3", "--op", "pool"), "op: got 'pool'"),
        (("explain", "n1 c3x8x8 k4x3x3", "--precision", "low"), "precision: got 'low'"),
    ],
)
def test_bad_requests_are_one_line(arguments: tuple[str, ...], words: str) -> None:
    text = call(*arguments, code=2)
    assert words in text
    assert "Traceback" not in text


def test_check_agrees_and_exits_with_zero() -> None:
    text = call("check", "--problem", TINY, "--problem", "max n1 c2x6x6 k2x2 indices")
    assert "comparisons agree" in text
    assert "pointwise" not in text


def test_check_reports_disagreement_with_the_line_that_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    check_plan = testing.check_plan

    def broken(made: Any, kind: str = "integers", seed: int = 0) -> Any:
        import dataclasses

        found = check_plan(made, kind, seed)
        return (
            dataclasses.replace(found, detail="1 of 9 elements differ") if made.backend == "im2col" else found
        )

    monkeypatch.setattr(testing, "check_plan", broken)
    text = call("check", "--problem", TINY, code=1)
    assert f'fastconv check --backend im2col --problem "{TINY}"' in text
    assert "1 of 9 elements differ" in text


def test_explain_and_info() -> None:
    text = call("explain", TINY, "--backend", "im2col")
    assert "im2col/im2col" in text
    assert "declined   pointwise" in text
    text = call("info")
    for words in ("numpy", "backend naive", "available", "BLAS", "threads", "cuDNN"):
        assert words in text


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent differently there")
def test_ctrl_c_still_writes_the_report(tmp_path: Path) -> None:
    page = tmp_path / "stopped.html"
    command = [sys.executable, "-m", "fastconv", "compare", "--workload", "resnet50", "--output", str(page)]
    # A shell lets what it starts in the background ignore the signal, and a child inherits that.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, preexec_fn=heard
    )
    time.sleep(6)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "interrupted" in output
    assert "interrupted" in page.read_text()
