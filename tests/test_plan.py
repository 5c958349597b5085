"""Plans: the order of selection, refusals, the cache, printing, and explain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastconv as fc
from fastconv.backends import Run, Unsupported, algorithm
from fastconv.plan import CACHED_PLANS, plan
from fastconv.spec import Op, parse

PROBLEM = "n1 c3x9x9 k4x3x3 s1 p1 f32"


class FakeBackend:
    """A table of planners, to see the selection loop at work."""

    def __init__(self, *planners: Any) -> None:
        self.PLANNERS = {Op.CONV: planners}

    @staticmethod
    def empty(shape: tuple[int, ...], dtype: str) -> Any:
        return np.empty(shape, dtype)


def accepts(name: str, seconds: float, **fields: Any) -> Any:
    @algorithm(name)
    def planner(spec: Any, precision: str, workspace_limit: int | None) -> Run:
        return Run(call=lambda *arrays: arrays[-1].fill(seconds), seconds=seconds, **fields)

    return planner


def refuses(name: str, why: str, workspace: int | None = None) -> Any:
    @algorithm(name)
    def planner(spec: Any, precision: str, workspace_limit: int | None) -> Run:
        raise Unsupported(why, workspace=workspace)

    return planner


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(*planners: Any) -> None:
        plan.cache_clear()
        monkeypatch.setattr("fastconv.plan.get", lambda name: FakeBackend(*planners))

    yield install
    plan.cache_clear()


def test_the_cheapest_wins_and_the_first_among_equals(fake: Any) -> None:
    fake(accepts("slow", 3.0), accepts("first", 1.0), accepts("second", 1.0), refuses("never", "it cannot"))
    made = plan(parse(PROBLEM), Op.CONV, "fake")
    assert made.algorithm == "first"
    assert dict(made.estimates) == {"slow": 3.0, "first": 1.0, "second": 1.0}
    assert dict(made.declined) == {"never": "it cannot"}
    assert plan(parse(PROBLEM), Op.CONV, "fake", "slow").algorithm == "slow"


def test_refusals_are_all_told(fake: Any) -> None:
    fake(
        refuses("one", "needs a 1x1 kernel"),
        refuses("two", "needs 4096 bytes", 4096),
        refuses("three", "too big", 512),
    )
    with pytest.raises(Unsupported) as caught:
        plan(parse(PROBLEM), Op.CONV, "fake", "auto", "default", 10)
    assert caught.value.reasons == {
        "one": "needs a 1x1 kernel",
        "two": "needs 4096 bytes",
        "three": "too big",
    }
    assert caught.value.workspace == 512
    for words in ("needs a 1x1 kernel", "at least 512 bytes", "got 10", PROBLEM):
        assert words in str(caught.value)


def test_transforms_follow_precision(fake: Any) -> None:
    fake(accepts("transform", 1.0, error=1e-6), accepts("plain", 2.0), accepts("rough", 0.5, error=1e-4))
    assert plan(parse(PROBLEM), Op.CONV, "fake").algorithm == "transform"
    assert plan(parse(PROBLEM), Op.CONV, "fake", "auto", "highest").algorithm == "plain"
    assert plan(parse(PROBLEM.replace("f32", "f64")), Op.CONV, "fake").algorithm == "plain"
    assert plan(parse(PROBLEM), Op.CONV, "fake", "rough").algorithm == "rough"
    with pytest.raises(Unsupported, match="transform"):
        plan(parse(PROBLEM), Op.CONV, "fake", "transform", "highest")


def test_plans_are_cached_and_the_cache_is_bounded() -> None:
    plan.cache_clear()
    assert plan(parse(PROBLEM), Op.CONV, "im2col") is plan(parse(PROBLEM), Op.CONV, "im2col")
    for size in range(3, 3 + CACHED_PLANS + 50):
        plan(parse(f"n1 c1x{size} k1x3"), Op.CONV, "naive")
    assert plan.cache_info().currsize == CACHED_PLANS


def test_plans_print_themselves() -> None:
    text = str(fc.explain(PROBLEM, backend="im2col"))
    for words in (
        PROBLEM,
        "im2col/im2col",
        "17,496 operations",
        "bytes",
        "workspace",
        "plain sum",
        "declined   pointwise",
        "estimate   fft",
    ):
        assert words in text, text


def test_plans_hold_no_arrays_and_refuse_wrong_shapes() -> None:
    made = fc.explain(PROBLEM, backend="im2col")
    x, w = np.ones((1, 3, 9, 9), "f4"), np.ones((4, 3, 3, 3), "f4")
    assert made(x, w).shape == (1, 4, 9, 9)
    with pytest.raises(ValueError, match=r"input: got shape \(1, 3, 9, 8\), expected \(1, 3, 9, 9\)"):
        made(x[..., :8], w)


def test_explain_takes_functions_and_computes_nothing() -> None:
    x, w = np.ones((1, 3, 9, 9), "f4"), np.ones((4, 3, 3, 3), "f4")
    out = np.full((1, 4, 7, 7), 5, "f4")
    made = fc.explain(fc.conv2d, x, w, backend="im2col", out=out)
    assert str(made.spec) == "n1 c3x9x9 k4x3x3 s1 p0 f32"
    assert (out == 5).all()
    assert fc.explain(fc.grad.conv2d_weight, x, w.shape, out).op is Op.CONV_WEIGHT_GRAD
    assert fc.explain(fc.max_pool2d, x, 2, return_indices=True).op is Op.POOL
    assert fc.explain(PROBLEM, op="conv input grad").op is Op.CONV_INPUT_GRAD


def test_workspace_counts_threads() -> None:
    made = fc.explain("n4 c16x40x40 k16x3x3 s1 p1 f32", backend="im2col")
    before = fc.get_num_threads()
    try:
        fc.set_num_threads(1)
        one = made.workspace
        fc.set_num_threads(2)
        assert made.workspace == 2 * one
    finally:
        fc.set_num_threads(before)
