"""The comparison: real workloads, honest rows, a report that says what was measured."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastconv.compare import Comparison, compare, default, measure, named, problems, read, report, slower
from fastconv.compare.memory import Request, peaks
from fastconv.compare.workloads import NETWORKS, shrunk, with_gradients
from fastconv.problems import PROBLEMS
from fastconv.spec import ConvSpec, Op, PoolSpec, parse

TINY = ["n1 c2x9x9 k3x3x3 s1 p1 f32", "max n1 c2x8x8 k2x2 s2 p0 f32", "n1 c2x8x8 k3x1x1 f32"]


@pytest.fixture(scope="module")
def run() -> Comparison:
    return compare(problems(TINY), workload="three tiny problems", repeat=3)


def test_every_backend_and_algorithm_has_a_row(run: Comparison) -> None:
    found = {(row.problem, row.backend, row.algorithm) for row in run.rows}
    first = str(parse(TINY[0]))
    assert {(first, "naive", "loops"), (first, "im2col", "im2col"), (first, "im2col", "fft")} <= found
    assert (str(parse(TINY[2])), "im2col", "pointwise") in found
    assert run.ok
    assert run.checked >= 2 * len(run.rows)


@pytest.mark.parametrize("backend", ["numba", "cupy", "im2col"])
def test_ways_to_convolve_are_told_apart_by_colour(backend: str) -> None:
    """In one chart they stand beside each other."""
    planners = importlib.import_module(f"fastconv.backends.{backend}").PLANNERS[Op.CONV]
    colours = [report.colour(f"{backend}/{planner.__name__}") for planner in planners]
    assert len(set(colours)) == len(colours)


def test_rows_are_complete(run: Comparison) -> None:
    for row in run.rows:
        assert 0 < row.low <= row.seconds <= row.high
        assert row.first_call > 0
        assert row.flops == parse(row.problem).flops()
        assert row.error is not None
        assert row.agrees
        assert row.peak is not None
        assert row.rounds >= 2


def test_json_reads_back(run: Comparison, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(run.as_json())
    assert dataclasses.asdict(read(path)) == dataclasses.asdict(run)
    assert json.loads(path.read_text())["format"] == 1


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 0}', '{"format": 1, "rows": 3}'])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"against: got .*other.json.* expected a JSON file"):
        read(path)
    with pytest.raises(ValueError, match="missing"):
        read(tmp_path / "missing.json")


def test_slower_rows_are_found(run: Comparison) -> None:
    def scaled(factor: float) -> Comparison:
        rows = [
            dataclasses.replace(
                row, seconds=row.seconds * factor, low=row.low * factor, high=row.high * factor
            )
            for row in run.rows
        ]
        return dataclasses.replace(run, rows=rows)

    assert not slower(run, run, 0.1)
    assert len(slower(scaled(10), run, 0.1)) == len(run.rows)
    assert not slower(scaled(0.1), run, 0.1)


def test_interruption_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    time_case, seen = measure.time_case, []

    def interrupted(case: Any, *rest: Any) -> Any:
        seen.append(case)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return time_case(case, *rest)

    monkeypatch.setattr(measure, "time_case", interrupted)
    stopped = compare(problems(TINY), workload="stopped", repeat=2)
    assert stopped.interrupted
    assert {row.problem for row in stopped.rows} == {str(parse(TINY[0]))}
    assert "interrupted" in report.markdown(stopped)
    assert "interrupted" in report.html(stopped)


def test_a_wrong_answer_is_shown(run: Comparison) -> None:
    rows = [dataclasses.replace(run.rows[0], agrees=False), *run.rows[1:]]
    wrong = dataclasses.replace(run, rows=rows, disagreements=["fastconv check --problem x"])
    assert not wrong.ok
    assert "disagree" in report.summary(wrong)[0]
    assert "WRONG" in report.markdown(wrong)
    assert 'class="wrong"' in report.html(wrong)


def test_page_is_one_file_that_needs_nothing(run: Comparison) -> None:
    page = report.html(run)
    head = page[: page.index("<script>")]
    assert "http://" not in head
    assert "https://" not in head
    assert "src=" not in head
    for words in (
        "three tiny problems",
        "Roofline",
        "Machine and versions",
        "How it was measured",
        *TINY[0].split(),
    ):
        assert words in page


def test_markdown_has_every_row(run: Comparison) -> None:
    short = set(report.short_markdown(run))
    lines = [line for line in report.markdown(run).splitlines() if line not in short]
    table = [line for line in lines if line.startswith("| ") and "---" not in line]
    assert len(table) == len(run.rows) + 1
    assert all(line.count("|") == len(report.COLUMNS) + 1 for line in table)


def test_short_table_has_a_line_for_every_problem(run: Comparison) -> None:
    assert len(report.short_markdown(run)) == 2 + len(TINY)


def test_default_workload_is_real() -> None:
    cases = default()
    specs = [case.spec for case in cases]
    assert {type(spec) for spec in specs} == {ConvSpec, PoolSpec}
    for case in cases:
        expected = [shape.shape for shape in case.spec.shapes(case.op)][: len(case.arrays)]
        assert [array.shape for array in case.operands()] == expected
        assert all(np.isfinite(array).all() for array in case.operands())
    names = " ".join(case.name for case in cases)
    for words in (
        "Sobel",
        "Gaussian",
        "Gabor",
        "VGG16 conv1_1",
        "VGG16 conv1_2",
        "AlexNet",
        "SimpleConvNet",
        "LeNet",
    ):
        assert words in names


@pytest.mark.parametrize("name", NETWORKS)
def test_network_workloads(name: str) -> None:
    assert [str(case.spec) for case in named(name)] == [str(parse(text)) for text in PROBLEMS[name]]


def test_unknown_workload() -> None:
    with pytest.raises(ValueError, match=r"workload: got 'resnet', expected one of .*resnet50"):
        named("resnet")


@pytest.mark.parametrize(
    "text",
    [
        "n100 c512x14x14 k512x3x3 s1 p1 g512 f32",
        "n1 c1x427x640 k16x31x31 s1 p15 f32",
        "max n100 c64x112x112 k3x3 s2 p1 f32",
        "avg n1 c1024x7x7 o1x1 f32",
    ],
)
def test_shrunk_problems_keep_their_kind(text: str) -> None:
    (case,) = problems([text])
    small = shrunk(case, 300_000)
    assert small.spec.flops() <= 300_000
    assert small.spec.kernel_size == case.spec.kernel_size
    assert [a.shape for a in small.operands()] == [s.shape for s in small.spec.shapes(small.op)][
        : len(small.operands())
    ]


def test_gradients_are_added() -> None:
    ops = [case.op for case in with_gradients(problems(TINY[:2]))]
    assert ops == [Op.CONV, Op.CONV_INPUT_GRAD, Op.CONV_WEIGHT_GRAD, Op.POOL, Op.POOL_INPUT_GRAD]


def test_memory_is_measured_in_another_process() -> None:
    request = Request("n1 c16x64x64 k16x3x3 s1 p1 f32", "conv", "im2col", "im2col")
    (peak,) = peaks([request])
    assert peak is not None
    assert peak > 100_000


def test_numbers_for_people() -> None:
    assert [report.seconds(v) for v in (3.2e-6, 0.0451, 3.0, 200.0)] == [
        "3.2 µs",
        "45.1 ms",
        "3 s",
        "3.33 min",
    ]
    assert [report.size(v) for v in (None, 12, 3456, 7_890_000, 1.05e9)] == [
        "-",
        "12 B",
        "3.46 kB",
        "7.89 MB",
        "1.05 GB",
    ]
    assert [report.times(v) for v in (None, 1.0, 2.345, 12345.0, 0.001)] == [
        "-",
        "1x",
        "2.35x",
        "12,345x",
        "1/1,000",
    ]
    assert [report.share(v) for v in (1.3, 0.0123, 1e-6)] == ["130 %", "1.2 %", "<0.01 %"]
