"""Plans: the order of selection, refusals, the cache, printing, and explain."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

import fastconv as fc
from fastconv.backends import Run, Unsupported, algorithm, algorithms, backends, get, owner
from fastconv.plan import CACHED_PLANS, MAX_ERROR, plan
from fastconv.spec import ConvSpec, Op, PoolSpec, parse

BACKENDS = [name for name, state in backends().items() if state == "available" and owner(name) == "numpy"]

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


def test_only_the_asked_for_algorithm_is_planned(fake: Any) -> None:
    """A name asks that planner alone; the others are neither run nor listed as declined."""
    asked: list[str] = []

    def recording(name: str, refuse: bool = False) -> Any:
        @algorithm(name)
        def planner(spec: Any, precision: str, workspace_limit: int | None) -> Run:
            asked.append(f"{name} {precision} {workspace_limit}")
            if refuse:
                raise Unsupported(f"{name} cannot")
            return Run(call=lambda *arrays: None, seconds=1.0)

        return planner

    fake(recording("one"), recording("two", refuse=True))
    made = plan(parse(PROBLEM), Op.CONV, "fake", "one", "highest", 77)
    assert asked == ["one highest 77"]
    assert not made.declined
    with pytest.raises(Unsupported, match=r"backend 'fake' cannot run conv of .*two: two cannot") as caught:
        plan(parse(PROBLEM), Op.CONV, "fake", "two")
    assert dict(caught.value.reasons) == {"two": "two cannot"}
    assert caught.value.workspace is None
    with pytest.raises(
        ValueError,
        match=r"algorithm: got 'three', expected one of auto, measure, one, two \(conv on backend 'fake'\)",
    ):
        plan(parse(PROBLEM), Op.CONV, "fake", "three")


def test_refusals_are_not_cached_as_plans(fake: Any) -> None:
    """What was refused once is asked again: nothing half-made stays behind."""
    answers: list[Unsupported | Run] = [Unsupported("not yet"), Run(call=lambda *arrays: None, seconds=1.0)]

    @algorithm("moody")
    def planner(spec: Any, precision: str, workspace_limit: int | None) -> Run:
        answer = answers.pop(0)
        if isinstance(answer, Unsupported):
            raise answer
        return answer

    fake(planner)
    with pytest.raises(Unsupported, match="not yet"):
        plan(parse(PROBLEM), Op.CONV, "fake")
    assert plan(parse(PROBLEM), Op.CONV, "fake").algorithm == "moody"


def test_a_transform_beyond_the_stated_error_runs_only_by_name(fake: Any) -> None:
    """precision "default": only transforms whose normwise error stays under 6e-6."""
    assert MAX_ERROR == 6e-6
    fake(
        accepts("over", 1.0, error=np.nextafter(MAX_ERROR, 1)),
        accepts("at", 2.0, error=MAX_ERROR),
        accepts("plain", 3.0),
    )
    made = plan(parse(PROBLEM), Op.CONV, "fake")
    assert made.algorithm == "at"
    assert "6e-06" in made.declined["over"]


@pytest.mark.parametrize("change", ["spec", "op", "backend", "algorithm", "precision", "workspace_limit"])
def test_every_question_has_its_own_plan(change: str) -> None:
    base: dict[str, Any] = {
        "spec": parse(PROBLEM), "op": Op.CONV, "backend": "im2col", "algorithm": "auto", "precision": "default",
        "workspace_limit": None,
    }  # fmt: skip
    other = {
        "spec": parse(PROBLEM.replace("n1", "n2")), "op": Op.CONV_WEIGHT_GRAD, "backend": "naive",
        "algorithm": "im2col", "precision": "highest", "workspace_limit": 10**6,
    }  # fmt: skip
    assert plan(*base.values()) is plan(*base.values())
    assert plan(*{**base, change: other[change]}.values()) is not plan(*base.values())


def test_plans_are_frozen_values_without_arrays() -> None:
    made = fc.explain(PROBLEM, backend="im2col")
    with pytest.raises(FrozenInstanceError):
        made.backend = "naive"  # type: ignore[misc]
    with pytest.raises(TypeError):
        made.declined["im2col"] = "no"  # type: ignore[index]
    assert not any(isinstance(getattr(made, name), np.ndarray) for name in made.__slots__)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "problem", [PROBLEM, "max n1 c2x6x6 k2x2 indices f32", "avg n2 c2x6x6 o3x3 f64", "lp3 n1 c2x9 k3 f32"]
)
def test_every_op_has_a_plan_on_every_backend(backend: str, problem: str) -> None:
    """Whatever is asked, the general algorithm at the end of each table takes it, and the plan says so."""
    spec = parse(problem)
    for op in spec.ops:
        made = fc.explain(problem, op=str(op), backend=backend)
        assert (made.spec, made.op, made.backend) == (spec, op, backend)
        assert made.algorithm in algorithms(backend, op)
        assert set(made.declined) | set(made.estimates) == {p.__name__ for p in get(backend).PLANNERS[op]}
        assert f"{op} of {spec}" in str(made)
        assert f"{backend}/{made.algorithm}" in str(made)
        for name, why in made.declined.items():
            assert f"declined   {name}: {why}" in str(made)
            assert len(why.split()) > 2


WRONG_OPERANDS: dict[str, Any] = {
    "one operand": (lambda p, x, w: p(x), "operands: got 1, expected 2"),
    "three operands": (lambda p, x, w: p(x, w, w), "operands: got 3, expected 2"),
    "a list": (lambda p, x, w: p(x.tolist(), w), "input: got .*list"),
    "another type": (lambda p, x, w: p(x.astype("f8"), w), "input: got dtype float64, expected float32"),
    "another weight type": (lambda p, x, w: p(x, w.astype("i2")), "weight: got dtype int16, expected float32"),
    "another shape": (lambda p, x, w: p(x, w[:3]), r"weight: got shape \(3, 3, 3, 3\), expected \(4, 3, 3, 3\)"),
    "bias shape": (lambda p, x, w: p(x, w, bias=x[0, 0, 0]), r"bias: got shape \(9,\), expected \(4,\)"),
    "out shape": (lambda p, x, w: p(x, w, out=np.zeros((1, 4), "f4")), r"out(put)?: got shape \(1, 4\), expected \(1, 4, 9, 9\)"),
    "out type": (lambda p, x, w: p(x, w, out=np.zeros((1, 4, 9, 9), "f8")), r"out(put)?: got dtype float64, expected float32"),
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", WRONG_OPERANDS)
def test_plans_refuse_wrong_operands(backend: str, name: str) -> None:
    """A plan is public and callable: what does not fit it is refused in words before a kernel sees it."""
    call, words = WRONG_OPERANDS[name]
    made = fc.explain(PROBLEM, backend=backend)
    with pytest.raises((TypeError, ValueError), match=words):
        call(made, np.ones((1, 3, 9, 9), "f4"), np.ones((4, 3, 3, 3), "f4"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_plans_compute_what_the_functions_do(backend: str) -> None:
    rng = np.random.default_rng(0)
    x, w, b = (rng.integers(-4, 5, shape).astype("f4") for shape in ((1, 3, 9, 9), (4, 3, 3, 3), (4,)))
    made = fc.explain(PROBLEM, backend=backend)
    expected = fc.conv2d(x, w, b, padding=1, backend=backend)
    out = np.full_like(expected, np.nan)
    assert made(x, w, bias=b, out=out) is out
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(made.run_packed(x, made.pack(w), bias=b), expected)
    pool = fc.explain("max n1 c3x9x9 k3x3 indices f32", backend=backend)
    for mine, other in zip(pool(x), fc.max_pool2d(x, 3, return_indices=True), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_explain_follows_the_current_backend_and_takes_specs() -> None:
    for name in BACKENDS:
        with fc.use_backend(name):
            assert fc.explain(PROBLEM).backend == name
            assert fc.explain(parse(PROBLEM)) is fc.explain(PROBLEM)
    spec = parse(PROBLEM)
    assert isinstance(spec, ConvSpec)
    assert fc.explain(spec, op="fold").op is Op.FOLD
    assert isinstance(fc.explain("max n1 c3x8x8 k2x2").spec, PoolSpec)


def test_explain_of_each_function_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every public function hands over its plan; no kernel runs and no operand is read or written."""
    from fastconv.plan import Plan

    monkeypatch.setattr(Plan, "_finish", lambda *arguments: pytest.fail("a kernel ran"))
    x, w, dy = np.ones((1, 3, 8, 8), "f4"), np.ones((4, 3, 3, 3), "f4"), np.ones((1, 4, 6, 6), "f4")
    p, i = np.ones((1, 3, 4, 4), "f4"), np.zeros((1, 3, 4, 4), "i8")
    calls: list[tuple[Op, Any, tuple[Any, ...]]] = [
        (Op.CONV, fc.conv2d, (x, w)), (Op.CONV_INPUT_GRAD, fc.conv_transpose2d, (dy, w)), (Op.UNFOLD, fc.unfold, (x, 3)),
        (Op.FOLD, fc.fold, (np.ones((1, 27, 36), "f4"), (8, 8), 3)), (Op.POOL, fc.max_pool2d, (x, 2)),
        (Op.POOL, fc.avg_pool2d, (x, 2)), (Op.POOL, fc.lp_pool2d, (x, 2, 2)), (Op.POOL, fc.adaptive_max_pool2d, (x, 2)),
        (Op.POOL, fc.adaptive_avg_pool2d, (x, 2)), (Op.UNPOOL, fc.max_unpool2d, (p, i, 2)),
        (Op.CONV_INPUT_GRAD, fc.grad.conv2d_input, (x.shape, w, dy)), (Op.CONV_WEIGHT_GRAD, fc.grad.conv2d_weight, (x, w.shape, dy)),
        (Op.CONV, fc.grad.conv_transpose2d_input, (dy.shape, w, x)),
        (Op.CONV_WEIGHT_GRAD, fc.grad.conv_transpose2d_weight, (dy, w.shape, x)),
        (Op.POOL_INPUT_GRAD, fc.grad.max_pool2d, (p, x, 2)), (Op.POOL_INPUT_GRAD, fc.grad.avg_pool2d, (p, x, 2)),
        (Op.POOL_INPUT_GRAD, fc.grad.lp_pool2d, (p, x, 2, 2)), (Op.POOL_INPUT_GRAD, fc.grad.adaptive_avg_pool2d, (p, x, 4)),
        (Op.POOL_INPUT_GRAD, fc.grad.adaptive_max_pool2d, (p, x, 4)), (Op.UNPOOL_INPUT_GRAD, fc.grad.max_unpool2d, (x, i)),
        (Op.CONV, fc.prepare_conv2d(w), (x,)), (Op.CONV_INPUT_GRAD, fc.prepare_conv_transpose2d(w), (dy,)),
    ]  # fmt: skip
    for op, function, arguments in calls:
        assert fc.explain(function, *arguments).op is op, function


def test_explain_listens_only_while_it_runs() -> None:
    """After an explain that failed, or in another thread meanwhile, calls compute as always."""
    x, w = np.ones((1, 1, 3, 3), "f4"), np.ones((1, 1, 2, 2), "f4")
    with pytest.raises(ValueError, match="stride"):
        fc.explain(fc.conv2d, x, w, stride=0)
    assert fc.conv2d(x, w)[0, 0, 0, 0] == 4

    def elsewhere() -> Any:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(fc.conv2d, x, w).result()[0, 0, 0, 0] == 4
        return fc.conv2d(x, w)

    assert fc.explain(elsewhere).op is Op.CONV


@pytest.mark.parametrize("problem", ["max n1 c1x20000000 k2 s2 p0 f32", "max n1 c1x20000000 k3 s1 p1 d2 f32"])
def test_long_signals_are_specified_without_walking_them(problem: str) -> None:
    """A spec costs the same for a minute of sound as for a thumbnail: its windows are not listed to check it."""
    import tracemalloc

    tracemalloc.start()
    try:
        parse(problem)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
