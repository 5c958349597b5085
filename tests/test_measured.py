"""``algorithm="measure"``: the fastest wins, is remembered, and nothing that is wrong with a disk is felt."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastconv as fc
from fastconv import measured
from fastconv.backends import Run, Unsupported, algorithm, backends, owner
from fastconv.plan import plan
from fastconv.spec import Op, parse

BACKENDS = [name for name, state in backends().items() if state == "available" and owner(name) == "numpy"]

PROBLEM = "n1 c3x9x9 k4x3x3 s1 p1 f32"

Calls = list[tuple[str, tuple[Any, ...]]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine on which nothing was ever measured."""
    monkeypatch.setattr(measured, "folder", lambda: tmp_path / "fastconv-measured")
    forget()
    yield tmp_path / "fastconv-measured"
    forget()


def forget() -> None:
    """As in a new process."""
    plan.cache_clear()
    measured._known.clear()


class Clock:
    """A time that passes where it is said to: a busy machine makes nobody slow."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1e-5
        return self.now


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Calls]:
    """Install a backend of algorithms that take so many milliseconds and are estimated at others."""
    clock = Clock()
    monkeypatch.setattr(measured, "time", clock)

    def install(**algorithms: tuple[float, Run]) -> Calls:
        calls: Calls = []

        def planner(name: str, taken: float, run: Run) -> Any:
            def call(*arrays: Any) -> None:
                calls.append((name, arrays))
                clock.now += taken / 1e3
                arrays[-1].fill(taken)

            @algorithm(name)
            def plans(spec: Any, precision: str, workspace_limit: int | None) -> Run:
                return Run(call=call, seconds=run.seconds, error=run.error, finite_only=run.finite_only)

            return plans

        class Fake:
            PLANNERS = {Op.CONV: [planner(name, *given) for name, given in algorithms.items()]}  # noqa: RUF012
            empty = staticmethod(np.empty)

        forget()
        monkeypatch.setattr("fastconv.plan.get", lambda name: Fake)
        return calls

    return install


def run(seconds: float, **fields: Any) -> Run:
    return Run(call=lambda: None, seconds=seconds, **fields)


def measure(problem: str = PROBLEM, precision: str = "default", limit: int | None = None) -> Any:
    return plan(parse(problem), Op.CONV, "im2col", "measure", precision, limit)


def test_the_fastest_wins_whatever_the_estimates_say(fake: Any) -> None:
    calls = fake(slow=(4, run(1.0)), fast=(2, run(2.0)), hopeless=(30, run(0.5)))
    made = measure()
    assert made.algorithm == "fast"
    assert dict(made.estimates) == {"slow": 1.0, "fast": 2.0, "hopeless": 0.5}
    assert 0.002 <= made.measured["fast"] < made.measured["slow"] < made.measured["hopeless"]
    order = [name for name, _ in calls]
    assert order[:6] == ["slow", "fast", "hopeless"] * 2
    assert order[6:10] == ["slow", "fast"] * 2, "they take turns, and the hopeless have one"
    assert order.count("fast") >= 2 + measured.LEAST
    text = str(made)
    assert "chosen     by measurement" in text
    assert text.index("fast: 2e+03 ms, measured") < text.index("slow: 1e+03 ms, measured")


def test_one_candidate_is_not_measured(fake: Any, folder: Path) -> None:
    calls = fake(only=(1, run(1.0)))
    made = measure()
    assert (made.algorithm, dict(made.measured), calls) == ("only", {}, [])
    assert "measure" not in str(made)
    assert not folder.exists()


def test_only_what_auto_may_choose_is_measured(fake: Any) -> None:
    calls = fake(rough=(0, run(1.0, error=1e-4)), transform=(1, run(1.0, error=1e-6)), plain=(5, run(1.0)))
    assert measure().algorithm == "transform"
    assert measure(precision="highest").algorithm == "plain"
    assert measure(PROBLEM.replace("f32", "f64")).algorithm == "plain"
    assert {name for name, _ in calls} == {"transform", "plain"}


def test_nothing_of_the_callers_is_seen(fake: Any) -> None:
    calls = fake(one=(0, run(1.0)), two=(1, run(1.0)))
    x, w, out = np.full((1, 3, 9, 9), np.nan, "f4"), np.ones((4, 3, 3, 3), "f4"), np.ones((1, 4, 9, 9), "f4")
    fc.conv2d(x, w, padding=1, backend="im2col", algorithm="measure", out=out)
    (_, last), others = calls[-1], calls[:-1]
    assert (last[0] is x, last[1] is w, last[-1] is out) == (True, True, True)
    assert len(others) > 4
    for _, arrays in others:
        assert np.isfinite(arrays[0]).all()
        assert not any(
            np.may_share_memory(mine, array) for mine in (x, w, out) for array in arrays if array is not None
        )


def test_answers_are_remembered(fake: Any, folder: Path) -> None:
    calls = fake(one=(2, run(1.0)), two=(1, run(1.0)))
    first = measure()
    count = len(calls)
    forget()
    assert measure().measured == first.measured
    assert len(calls) == count
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda: measure(PROBLEM.replace("n1", "n2")),
        lambda: measure(precision="highest"),
        lambda: measure(limit=10**6),
        lambda: plan(parse(PROBLEM), Op.CONV, "numba", "measure"),
        lambda: plan(parse(PROBLEM), Op.CONV, "im2col", "measure", prepared=True),
    ],
)
def test_every_question_has_its_own_answer(fake: Any, folder: Path, change: Callable[[], Any]) -> None:
    fake(one=(0, run(1.0)), two=(1, run(1.0)))
    measure()
    change()
    assert len(list(folder.iterdir())) == 2


def test_the_number_of_threads_is_no_question(fake: Any) -> None:
    calls = fake(one=(0, run(1.0)), two=(1, run(1.0)))
    before = fc.get_num_threads()
    try:
        counts = []
        for threads in (1, 2):
            fc.set_num_threads(threads)
            forget()
            measure()
            counts.append(len(calls))
    finally:
        fc.set_num_threads(before)
    assert counts[0] == counts[1]


def test_another_version_or_processor_measures_anew(
    fake: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(one=(0, run(1.0)), two=(1, run(1.0)))
    measure()
    monkeypatch.setattr(measured, "_processor", lambda: "another")
    measured._stamp.cache_clear()
    try:
        forget()
        measure()
    finally:
        measured._stamp.cache_clear()
    assert len(list(folder.iterdir())) == 2


def test_another_set_of_candidates_measures_anew(fake: Any) -> None:
    fake(one=(1, run(1.0)), two=(2, run(1.0)))
    measure()
    calls = fake(one=(1, run(1.0)), three=(0, run(1.0)))
    assert measure().algorithm == "three"
    assert calls


def test_the_folder_is_bounded(fake: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "REMEMBERED", 3)
    calls = fake(one=(0, run(1.0)), two=(1, run(1.0)))
    for batch in range(1, 7):
        measure(PROBLEM.replace("n1", f"n{batch}"))
        for path in folder.iterdir():  # each a second older than the next, whatever the clock's steps
            stamp = path.stat().st_mtime - 1
            os.utime(path, (stamp, stamp))
    assert len(list(folder.iterdir())) == len(measured._known) == 3
    forget()
    count = len(calls)
    measure(PROBLEM.replace("n1", "n6"))
    assert len(calls) == count, "the newest stay"


@pytest.mark.parametrize(
    "damage", [b"", b"{}", b"not what was written" * 9, None], ids=["empty", "short", "foreign", "half"]
)
def test_damaged_answers_are_measured_anew(fake: Any, folder: Path, damage: bytes | None) -> None:
    calls = fake(one=(0, run(1.0)), two=(1, run(1.0)))
    measure()
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    forget()
    calls.clear()
    assert measure().algorithm == "one"
    assert calls
    assert json.loads(path.read_bytes()[32:]).keys() == {"one", "two"}


def test_a_folder_that_cannot_be_written_is_no_failure(
    fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "a file, not a folder"
    blocked.write_text("")
    monkeypatch.setattr(measured, "folder", lambda: blocked / "fastconv-measured")
    calls = fake(one=(0, run(1.0)), two=(1, run(1.0)))
    first = measure()
    count = len(calls)
    plan.cache_clear()  # as after ever new problems
    assert measure().measured == first.measured
    assert len(calls) == count, "within the process it stays"


@pytest.mark.parametrize("at", [1, 5])
def test_ctrl_c_leaves_nothing_behind(
    fake: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    calls = fake(one=(0, run(1.0)), two=(1, run(1.0)))
    turn, turns = measured._turn, 0

    def interrupted(call: Any) -> float:
        nonlocal turns
        turns += 1
        if turns == at:
            raise KeyboardInterrupt
        return turn(call)

    monkeypatch.setattr(measured, "_turn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure()
    assert not folder.exists()
    calls.clear()
    assert measure().algorithm == "one"
    assert calls


def test_ctrl_c_while_writing_leaves_no_half_file(
    fake: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(one=(0, run(1.0)), two=(1, run(1.0)))

    def interrupted(path: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            measure()
    assert list(folder.iterdir()) == []
    measure()
    assert len(list(folder.iterdir())) == 1


def test_many_threads_measure_once_and_agree(fake: Any) -> None:
    calls = fake(one=(1, run(1.0)), two=(1, run(1.0)))

    def ask(_: int) -> Any:
        return plan.__wrapped__(parse(PROBLEM), Op.CONV, "im2col", "measure").algorithm

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(16)))) == 1
    assert len(calls) <= 2 * (2 + measured.MOST)


def test_processes_share_a_folder(folder: Path) -> None:
    program = (
        f"import fastconv as fc; print(*fc.explain({PROBLEM!r}, backend='im2col', "
        "algorithm='measure').measured.values())"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder.parent)}
    command = [sys.executable, "-c", program]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(3)]
    for process in running:
        process.communicate(timeout=240)
    assert [process.returncode for process in running] == [0, 0, 0]
    (path,) = folder.iterdir()
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=240)
    assert list(map(float, made.stdout.split())) == list(json.loads(path.read_bytes()[32:]).values())


# ---------------------------------------------------------------------------- with the backends there are


def test_every_function_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each function's result is that of the algorithm which the measurement chose."""
    monkeypatch.setattr(measured, "SECONDS", 0.0)
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype("f4")

    x, w, dy, columns = normal(1, 3, 8, 8), normal(4, 3, 3, 3), normal(1, 4, 6, 6), normal(1, 27, 36)
    p, i = normal(1, 3, 4, 4), np.zeros((1, 3, 4, 4), "i8")
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (fc.conv1d, (normal(1, 3, 8), normal(4, 3, 3))), (fc.conv2d, (x, w)), (fc.conv3d, (normal(1, 2, 4, 4, 4), normal(3, 2, 2, 2, 2))),
        (fc.conv_transpose2d, (dy, w)), (fc.unfold, (x, 3)), (fc.fold, (columns, (8, 8), 3)),
        (fc.max_pool2d, (x, 2)), (fc.avg_pool2d, (x, 2)), (fc.lp_pool2d, (x, 2, 2)), (fc.max_pool1d, (x[0], 3)),
        (fc.adaptive_max_pool2d, (x, 2)), (fc.adaptive_avg_pool2d, (x, 3)), (fc.max_unpool2d, (p, i, 2)),
        (fc.grad.conv2d_input, (x.shape, w, dy)), (fc.grad.conv2d_weight, (x, w.shape, dy)),
        (fc.grad.conv_transpose2d_input, (dy.shape, w, x)), (fc.grad.conv_transpose2d_weight, (dy, w.shape, x)),
        (fc.grad.max_pool2d, (p, x, 2)), (fc.grad.avg_pool2d, (p, x, 2)), (fc.grad.lp_pool2d, (p, x, 2, 2)),
        (fc.grad.adaptive_avg_pool2d, (p, x, 4)), (fc.grad.max_unpool2d, (x, i)),
    ]  # fmt: skip
    chose = set()
    for backend in (None, *BACKENDS):
        for function, arguments in calls:
            with contextlib.suppress(Unsupported):  # numba knows no gradients of pools yet
                made = fc.explain(function, *arguments, backend=backend, algorithm="measure")
                result = function(*arguments, backend=backend, algorithm="measure")
                expected = function(*arguments, backend=backend, algorithm=made.algorithm)
                assert result.tobytes() == expected.tobytes(), (function, backend)
                assert made.measured.keys() == (made.estimates.keys() if len(made.estimates) > 1 else set())
                assert not made.measured or made.algorithm == min(
                    made.measured, key=made.measured.__getitem__
                )
                chose |= {made.backend} if made.measured else set()
    assert chose == {"numba", "im2col"}


@pytest.mark.parametrize("prepare", [fc.prepare_conv2d, fc.prepare_conv_transpose2d])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "u2", "i8"])
def test_prepared_convolutions_take_it(
    prepare: Any, backend: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of this time every call takes as much, whatever the machine does. Winograd, which rounds, may be the one that wins.
    rounding = 1e-6 if dtype == "f4" else 0
    monkeypatch.setattr(measured, "time", Clock())
    monkeypatch.setattr(measured, "SECONDS", 0.0)
    x, w = np.ones((2, 4, 6, 6), dtype), np.ones((4, 4, 3, 3), dtype)
    prepared = prepare(w, backend=backend, algorithm="measure")
    for _ in range(2):  # the second call takes the short way
        assert float(prepared(x).max()) == pytest.approx(36, rel=rounding)
    made = fc.explain(prepared, x)
    assert bool(made.measured) == (len(made.estimates) > 1)


def test_bfloat16_and_a_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "SECONDS", 0.0)
    assert len(fc.explain(PROBLEM.replace("f32", "bf16"), algorithm="measure").measured) > 1
    x, w = np.ones((1, 3, 9, 9), "f4"), np.ones((4, 3, 3, 3), "f4")
    with monkeypatch.context() as patch:
        first = fc.conv2d(x, w, padding=1, algorithm="measure")
        patch.setattr("fastconv.api.plan", lambda *arguments: pytest.fail("planned again"))
        assert fc.conv2d(x, w, padding=1, algorithm="measure").tobytes() == first.tobytes()


def test_what_a_transform_would_spoil_is_summed_plainly(fake: Any) -> None:
    fake(transform=(0, run(1.0, error=1e-6, finite_only=True)), plain=(1, run(1.0)), plainer=(3, run(1.0)))
    x, w = np.ones((1, 3, 9, 9), "f4"), np.ones((4, 3, 3, 3), "f4")
    keywords: dict[str, Any] = {"padding": 1, "backend": "im2col", "algorithm": "measure"}
    assert fc.explain(fc.conv2d, x, w, **keywords).algorithm == "transform"
    x[0, 0, 0, 0] = np.nan
    assert fc.explain(fc.conv2d, x, w, **keywords).algorithm == "plain"
