"""The benchmarks: rivals that answer or refuse, floors that can be missed, and a page made from what was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastconv as fc
from benchmarks import performance, results
from benchmarks.baselines import BASELINES, GRADIENTS, disagreement, gradient_operands, operands, tolerance
from benchmarks.results import Engine, Floor, Part, Results
from benchmarks.selection import NETWORKS, gradients, layers
from fastconv import testing
from fastconv.backends import Unsupported
from fastconv.nn.models import MODELS
from fastconv.plan import plan
from fastconv.problems import PROBLEMS
from fastconv.spec import ConvSpec, Op, PoolSpec, parse

ROOT = Path(__file__).parents[1]
FILE = ROOT / "benchmarks" / "results.json"
ENGINE = ROOT / "benchmarks" / "engine.json"
BACKWARD = ROOT / "benchmarks" / "gradients.json"

WIDE, POINT, POOL = (
    "n1 c64x56x56 k64x3x3 s1 p1 f32",
    "n1 c64x56x56 k64x1x1 s1 p0 f32",
    "max n1 c4x8x8 k2x2 s2 p0 f32",
)
SMALL = "n1 c8x9x9 k8x3x3 s1 p1 f32"
POOLS = (POOL, "max n1 c4x8x8 k2x2 s2 p0 indices f32", "avg n1 c4x8x8 k2x2 s2 p0 f32")


# ---------------------------------------------------------------------------- rivals


@pytest.mark.oracle
@pytest.mark.parametrize("rival", BASELINES)
def test_rivals_answer_or_say_why_not(rival: str) -> None:
    answered, reasons = set(), []
    for problem in PROBLEMS["edges"]:
        spec = parse(problem)
        x, weight, bias = operands(spec)
        try:
            made = BASELINES[rival](spec, weight, bias)
        except Unsupported as refusal:
            if "is not installed" in str(refusal):
                pytest.skip(str(refusal))
            reasons.append(str(refusal))
            continue
        answer = testing.reference(spec, spec.ops[0], (x,) if weight is None else (x, weight), bias)
        expected = answer if isinstance(answer, tuple) else (answer,)
        found = made.read(made.run(made.place(x)))
        _, detail = disagreement(found, expected, tolerance(spec, x, weight, bias), max(spec.batch, 1))
        assert not detail, f"{rival} on '{spec}': {detail}"
        assert [array.dtype.name for array in found] == [
            shape.dtype for shape in spec.shapes(spec.ops[0])[-len(found) :]
        ]
        answered.add(spec.mode if isinstance(spec, PoolSpec) else "conv")
    assert all(", needs " in reason or reason.startswith("it ") for reason in reasons), reasons
    assert answered == {"scipy": {"conv"}}.get(rival, {"conv", "max", "avg", "lp"})


@pytest.mark.oracle
@pytest.mark.parametrize("rival", BASELINES)
def test_a_bias_is_added(rival: str) -> None:
    spec = parse("n1 c1x6x7 k4x3x3 s1 p1 f32")
    x, weight, bias = operands(spec)
    assert bias is not None
    found: list[Any] = []
    for added in (bias, None):
        try:
            made = BASELINES[rival](spec, weight, added)
        except Unsupported as refusal:
            pytest.skip(str(refusal))
        found += made.read(made.run(made.place(x)))
    allowed = tolerance(spec, x, weight, bias)
    assert not disagreement(found[:1], [found[1] + bias[:, None, None]], allowed)[1]
    assert disagreement(found[:1], found[1:], allowed)[1]


def test_a_wrong_image_is_seen() -> None:
    spec = parse("n2 c2x4x4 k2x3x3 s1 p1 f32")
    x, weight, bias = operands(spec)
    (answer,) = (testing.reference(spec, spec.ops[0], (x, weight), bias),)
    result = answer.astype("float32").repeat(2, axis=0)[[0, 2, 0, 2]]
    allowed = tolerance(spec, x, weight, bias)
    assert not disagreement((result,), (answer,), allowed, 2)[1]
    result[3, 1, 2, 2] += 1
    assert disagreement((result,), (answer,), allowed, 2)[1].startswith("image 3")


@pytest.mark.oracle
@pytest.mark.parametrize("rival", GRADIENTS)
@pytest.mark.parametrize(
    "problem",
    [
        "n2 c3x9x8 k4x3x2 s2x1 p1x0 f32",
        "n2 c4x6x5 k4x3x3 s2 p1 g4 f32",
        "n2 c6x7x7 k4x3x3 s1 p2 d2 g2 f32",
        "max n2 c3x7x8 k3x3 s2 p1 ceil indices f32",
        "avg n2 c3x7x8 k3x2 s2 p1 exclude_pad f32",
        "avg n2 c3x5x4 o1x1 f32",
    ],
)
def test_rivals_gradients_are_right(rival: str, problem: str) -> None:
    """Whole numbers, so exactly, but for quotients."""
    pytest.importorskip("torch", reason="torch is not installed")
    for spec, op in gradients([parse(problem)]):
        given = gradient_operands(spec, op)
        made = GRADIENTS[rival](spec, op)
        (found,) = made.read(made.run(made.place(given)))
        allowed = testing.tolerance(plan(spec, op, "im2col", "auto", "highest"), given)
        assert (allowed == 0) is (getattr(spec, "mode", "") != "avg")
        _, detail = testing.compare(found, testing.reference(spec, op, given), allowed)
        assert not detail, f"{op}: {detail}"


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ("max n2 c3x6x7 k2x2 s2 p0 f32", "max pools with indices"),
        ("n1 c2x5x6 k3x3x3 s1 p2 reflect f32", "needs zeros"),
        ("n1 c2x9 k3x3 s1 p0 f32", "needs two"),
    ],
)
def test_gradients_that_are_not_measured_say_why(problem: str, words: str) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    spec = parse(problem)
    with pytest.raises(Unsupported, match=words):
        GRADIENTS["torch"](spec, spec.ops[1])


# ---------------------------------------------------------------------------- what is measured


def test_every_layer_is_measured() -> None:
    for network in NETWORKS:
        found = {str(spec) for spec in layers(network, 1)}
        assert set(PROBLEMS[network]) <= found | {p for p in PROBLEMS[network] if " max " in p}
        windows = [parse(p) for p in PROBLEMS[network] if isinstance(parse(p), PoolSpec) and "o1x1" not in p]
        assert len([p for p in found if "indices" in p]) == len(windows)


def test_whole_networks_hold_every_layer() -> None:
    rivals = pytest.importorskip("benchmarks.rivals", reason="the engine's compiler is not installed")
    assert set(rivals.vgg16()) == set(PROBLEMS["vgg16"])
    assert len(list(rivals.vgg16())) == 13 + 5
    convolutions = {p for p in PROBLEMS["resnet50"] if isinstance(parse(p), ConvSpec)}
    assert set(rivals.resnet50()) == convolutions
    assert len(list(rivals.resnet50())) == 53
    assert sum(parse(p).flops() for p in rivals.resnet50()) / 1e9 == pytest.approx(8.2, abs=0.1)


def test_everybody_is_called_in_every_round() -> None:
    rivals = pytest.importorskip("benchmarks.rivals", reason="the engine's compiler is not installed")
    order: list[str] = []
    found = rivals.in_turns({name: lambda name=name: order.append(name) for name in "xy"}, 0.001, 1)
    assert 3 <= len(found["x"]) == len(found["y"]) <= rivals.MOST
    called = "".join(order)  # in every round one comes after the other, in either order
    assert called.count("xy") + called.count("yx") > len(found["x"])


@pytest.fixture
def threads() -> Iterator[None]:
    """Measuring sets the number of threads."""
    before = fc.get_num_threads()
    yield
    fc.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_gradients_of_many_images_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight's gradient sums over images, an input's has one result for each: the last image counts in both."""
    rivals = pytest.importorskip("benchmarks.rivals", reason="the engine's compiler is not installed")
    spec = parse("n4 c2x6x6 k3x3x3 s1 p1 f32")
    for op in (Op.CONV_INPUT_GRAD, Op.CONV_WEIGHT_GRAD):
        (record,) = rivals.measure_layer(spec, op, (1,), 0.001)
        assert (record["op"], set(record["algorithms"])) == (op.value, {"gradient"})
        assert {"gradient", "limit"} <= set(record["seconds"])

        def wrong(spec: Any, op: Op, given: Any, right: Any = rivals.our_gradient) -> Any:
            given[0][-1, 0, 0, 0] += 1
            return right(spec, op, given)

        with monkeypatch.context() as patched:
            patched.setattr(rivals, "our_gradient", wrong)
            with pytest.raises(AssertionError, match="is wrong"):
                list(rivals.measure_layer(spec, op, (1,), 0.001))


@pytest.mark.oracle
@pytest.mark.usefixtures("threads")
def test_a_training_step_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every way; and a gradient that is off is seen."""
    rivals = pytest.importorskip("benchmarks.rivals", reason="the engine's compiler is not installed")
    pytest.importorskip("torch", reason="torch is not installed")
    training = rivals.training
    (record,) = rivals.measure_step("lenet", (1,), 0.001)
    assert set(record["seconds"]) == set(record["peaks"]) == set(training.STEPS)
    assert all(1e5 < peak < 1e9 for peak in record["peaks"].values())
    exact, allowed = training.reference("lenet")
    for gradient, off in zip(exact, allowed, strict=True):
        assert 0 < off < 0.01 * abs(gradient).max()
    exact[0][0, 0, 0, 0] += 10 * allowed[0]
    monkeypatch.setattr(training, "reference", lambda network: (exact, allowed))
    monkeypatch.setattr(training, "peaks", lambda *_: {})
    with pytest.raises(AssertionError, match="step of lenet on 1 threads is wrong"):
        list(rivals.measure_step("lenet", (1,), 0.001))


# ---------------------------------------------------------------------------- floors


def seconds(**medians: float) -> dict[str, list[float]]:
    names = {"channels_last": "torch channels_last"}
    return {names.get(way, way): [0.99 * value, value, 1.01 * value] for way, value in medians.items()}


def conv(problem: str, threads: int, **medians: float) -> dict[str, Any]:
    ways = dict.fromkeys(("prepared", "unprepared", "highest"), "implicit_gemm")
    return {
        "problem": problem,
        "threads": threads,
        "rounds": 5,
        "seconds": seconds(**medians),
        "algorithms": ways,
    }


def made_up(**changes: float) -> Results:
    """Two convolutions, three pools and a network on each number of threads; everything is met, just."""
    found = Results(
        {"cpu": "a processor", "cores": 2, "vectors": "avx2", "engine": "0", "packages": {"numpy": "2"}}
    )
    wide = {
        "prepared": 1.0,
        "unprepared": 1.1,
        "highest": 1.9,
        "torch": 1.9,
        "onnxruntime": 2.5,
        "limit": 1.75,
    }
    point = {
        "prepared": 1.0,
        "unprepared": 1.1,
        "highest": 1.0,
        "torch": 3.0,
        "channels_last": 1.2,
        "limit": 0.1,
    }
    for threads in (1, 2):
        found.set_limits(threads, {"flops": 1e11 * threads, "bytes": 1e10})
        found.set_record(conv(WIDE, threads, **{**wide, **changes}))
        found.set_record(conv(POINT, threads, **point))
        for problem in POOLS:
            record = conv(problem, threads, pool=1.0, torch=1.6, limit=0.75)
            found.set_record({**record, "algorithms": {"pool": "windows"}})
        times = seconds(prepared=1.0, unprepared=1.0, highest=1.0, torch=1.8, onnxruntime=1.75)
        found.set_record({"network": "vgg16", "threads": threads, "rounds": 5, "seconds": times})
        times = seconds(unprepared=1.0, torch=1.7, **{"torch channels_last": 1.6})
        found.set_record({"network": "looking", "threads": threads, "rounds": 5, "seconds": times})
    return found


def parts(found: Results, label: str, threads: int = 1) -> list[Part]:
    (floor,) = [floor for floor in results.floors(found) if floor.label.startswith(label)]
    assert isinstance(floor, Floor)
    return floor.parts[threads]


def test_floors_are_ratios_to_the_fastest_rival() -> None:
    found = made_up()
    prepared, unprepared = parts(found, "3x3 stride-1")
    assert prepared.value == pytest.approx(1.9)
    assert unprepared.value == pytest.approx(1.9 / 1.1)
    everything, _ = parts(found, "all layers")
    assert everything.value == pytest.approx(math.sqrt(1.9 * 1.2))
    (worst,) = parts(found, "the worst layer")
    assert worst.value == pytest.approx(1.2)
    assert POINT in worst.remark
    (highest,) = parts(found, "`precision")
    assert highest.value == pytest.approx(math.sqrt(1.0 * 1.2))
    assert "worst 1.00x" in highest.remark
    (peak,) = parts(found, "large direct")
    assert peak.value == pytest.approx(1.75 / 1.9)  # the 1x1 layer has 0.03 GFLOP and does not count
    assert [part.value for part in parts(found, "pooling")] == pytest.approx([1.6, 0.75] * 3)
    assert [part.value for part in parts(found, "pooling", 2)] == pytest.approx([1.6] * 3)
    assert parts(found, "VGG16 stack")[0].value == pytest.approx(1.75)
    assert parts(found, "VGG16 forward")[0].value == pytest.approx(1.6)
    assert all(part.met for floor in results.floors(found) for some in floor.parts.values() for part in some)


def trained(**changes: float) -> Results:
    """Gradients of three convolutions and two pools, and a step of both networks; everything is met, just."""
    found = Results(made_up().machine)
    times = {"input": 1.0, "weight": 1.0, "pool": 1.0, "step": 1.0, "peak": 1.0, **changes}
    depthwise = SMALL.replace("p1", "p1 g8")
    for threads in (1, 2):
        for problem, op, ours, theirs in (
            (WIDE, Op.CONV_INPUT_GRAD, "input", 1.7),
            (depthwise, Op.CONV_INPUT_GRAD, "input", 1.7),
            (POINT, Op.CONV_INPUT_GRAD, "input", 1.5**3 / 1.7**2),
            (WIDE, Op.CONV_WEIGHT_GRAD, "weight", 0.8),
            (POINT, Op.CONV_WEIGHT_GRAD, "weight", 1.4**2 / 0.8),
            (POOLS[1], Op.POOL_INPUT_GRAD, "pool", 1.5),
            (POOLS[2], Op.POOL_INPUT_GRAD, "pool", 1.5),
        ):
            record = conv(
                problem, threads, gradient=times[ours], torch=9.0, channels_last=theirs + 1e-9, limit=0.5
            )
            found.set_record({**record, "op": op.value, "algorithms": {"gradient": "windows"}})
        for network in ("simple", "lenet"):
            taken = seconds(step=times["step"], torch=1.5, channels_last=3.0)
            peaks = {"step": times["peak"] * 1e6, "torch": 2e6, "torch channels_last": 1e6}
            found.set_record(
                {"network": network, "threads": threads, "rounds": 5, "seconds": taken, "peaks": peaks}
            )
    return found


def test_gradients_and_training_have_floors() -> None:
    for floor in results.gradient_floors(trained()):
        for some in floor.parts.values():
            for part in some:
                assert part.met, f"{floor.label}: {part}"
                assert part.value == pytest.approx(part.floor)
    assert "not measured" in str(results.gradient_floors(Results({}))[0].parts[1][0])


@pytest.mark.parametrize(
    ("change", "short"),
    [
        ("input", ["input gradients", "those of 3x3", "those of 3x3"]),
        ("weight", ["weight gradients", "the worst gradient"]),
        ("pool", ["gradients of pools", "gradients of pools"]),
        ("step", ["a training step", "a training step"]),
        ("peak", ["peak memory", "peak memory"]),
    ],
)
def test_floors_of_gradients_can_be_missed(change: str, short: list[str]) -> None:
    found = results.gradient_floors(trained(**{change: 1.01}))
    for threads in (1, 2):
        missed = [floor.label for floor in found for part in floor.parts[threads] if not part.met]
        assert len(missed) == len(short)
        assert all(label.startswith(start) for label, start in zip(missed, short, strict=True))


def test_gradients_stand_on_the_page_once_they_are_measured(tmp_path: Path) -> None:
    assert "## Gradients" not in performance.markdown(made_up(), engine())
    found, path = trained(), tmp_path / "gradients.json"
    path.write_text(found.as_json(), encoding="utf-8")
    assert results.read(path).as_json() == found.as_json()
    pages = performance.pages(made_up(), engine(), results.read(path))
    text = pages[performance.PAGE].partition("## Gradients")[2].partition("## Starting")[0]
    assert text.count(f"| 0.80x | `{WIDE}`, weight gradient |") == 2
    assert text.count(f"| `{WIDE}` | input gradient | windows |") == 2
    assert "Every gradient that is slower: 2 of 14" in text
    assert "| LeNet-5 | 2 | 1 s ±1 % | 1.5 s ±1 % | 3 s ±1 % | 1.50x | 1 MB | 2 MB | 1 MB |" in text
    picture = pages[performance.GRADIENT_RATIOS]
    assert picture.count('class="one dot"') == 7 + 1  # one in the legend
    assert f"{WIDE}, weight gradient, one thread: 0.80x PyTorch channels_last" in picture


@pytest.mark.parametrize(
    ("label", "changes"),
    [
        ("3x3 stride-1", {"prepared": 1.2}),
        ("all layers", {"unprepared": 2.0}),
        ("the worst layer", {"prepared": 2.4}),
        ("`precision", {"highest": 3.0}),
        ("large direct", {"highest": 2.1}),
    ],
)
def test_floors_can_be_missed(label: str, changes: dict[str, float]) -> None:
    for threads in (1, 2):
        assert False in [part.met for part in parts(made_up(**changes), label, threads)]


def test_what_is_short_never_looks_met() -> None:
    part = Part("prepared", 1.7, 1.6999)
    assert part.met is False
    assert "1.69x, short" in str(part)
    assert "1.70x, met" in str(Part("prepared", 1.7, 1.7))
    assert "not measured" in str(Part("prepared", 1.7, None))
    assert "89.9 %, short" in str(Part("of the peak", 0.9, 0.89999, "%"))


# ---------------------------------------------------------------------------- the engine by itself


def choice(**taken: float) -> dict[str, Any]:
    """A layer whose algorithms were estimated at a second more each, in this order."""
    return {
        "problem": WIDE,
        "way": "prepared",
        "estimates": {name: 1.0 + at for at, name in enumerate(taken)},
        "seconds": seconds(**taken),
    }


def engine(first: float = 0.1, **taken: float) -> Engine:
    facts = made_up().machine
    records = [choice(winograd=1.0, implicit_gemm=2.0), choice(**(taken or {"winograd": 1.0, "fft": 4.0}))]
    start = {"compile": 29.0, "import numba": 0.2, "first call": first, "three kinds": first}
    return Engine(facts, start, records)


def test_a_wrong_choice_is_a_loss() -> None:
    right, wrong = engine(), engine(winograd=3.0, implicit_gemm=2.0)
    assert [c.regret() for c in right.choices] == [1, 1]
    assert [c.regret() for c in wrong.choices] == [1, 1.5]
    assert (wrong.choices[1].chosen, wrong.choices[1].best) == ("winograd", "implicit_gemm")
    assert wrong.mean_regret() == wrong.mean_regret("prepared") == pytest.approx(math.sqrt(1.5))
    assert wrong.mean_regret("pool") is None
    assert results.read_engine(ENGINE).as_json() == ENGINE.read_text(encoding="utf-8")


def test_the_floors_of_other_machines_stand_on_the_page() -> None:
    made = made_up()
    page = performance.markdown(made, engine(), elsewhere={"a-name": (made, made)})
    text = page.partition("## The floors on another machine: a-name")[2].partition("\n## ")[0]
    assert made.machine["engine"] in text
    assert "the worst layer" in text
    assert "peak memory of a training step" in text


def test_wrong_choices_and_slow_starts_stand_on_the_page() -> None:
    def page(found: Engine) -> str:
        return (
            performance.markdown(made_up(), found).partition("## Starting")[2].partition("## The machine")[0]
        )

    assert "| 50.0 % |" in page(engine(winograd=3.0, implicit_gemm=2.0))
    assert "implicit_gemm: 2 s, 2 s" in page(engine(winograd=3.0, implicit_gemm=2.0))
    assert "worst, each" not in page(engine())
    assert page(engine()).count("met**") == 3
    assert page(engine(first=0.31)).count("310 ms, short**") == 2


def test_choices_are_measured_where_there_is_one() -> None:
    measuring = pytest.importorskip("benchmarks.engine", reason="the engine's compiler is not installed")
    records = list(measuring.measure_choices([parse(SMALL), parse(POOL)], 0.001))
    assert [record["way"] for record in records] == ["prepared", "unprepared", "pool"]
    for record in records:
        assert record["estimates"].keys() == record["seconds"].keys()
        assert len(record["seconds"]) > 1
        assert all(0 < low <= median <= high for low, median, high in record["seconds"].values())


def test_fitting_finds_a_constant_that_was_bent() -> None:
    """Times made by the model with slower multiply-adds: the fit returns to them from the constant there is."""
    measuring = pytest.importorskip("benchmarks.engine", reason="the engine's compiler is not installed")
    layers = [WIDE, POINT, SMALL, WIDE.replace("56x56", "14x14"), WIDE.replace("c64", "c8")]
    before = measuring.fitted()
    with measuring.constants({"CYCLE": 2 * before["CYCLE"]}):
        assert measuring.fitted()["CYCLE"] == 2 * before["CYCLE"]
        records = [
            {"problem": name, "way": "unprepared", "estimates": said, "seconds": seconds(**said)}
            for name in layers
            for said in [{n: m.run.seconds for n, m in measuring.candidates(parse(name), False).items()}]
        ]
    assert measuring.fitted() == before
    found = measuring.fit(Engine({}, {}, records).choices)
    assert found.after["CYCLE"] / before["CYCLE"] == pytest.approx(2, rel=0.3)
    assert found.regrets[1] <= found.regrets[0]
    assert measuring.fitted() == before


def test_every_layer_with_a_choice_stands_in_the_file() -> None:
    """At stride 1 Winograd's or the depthwise kernel stands beside the general one."""
    specs = {spec for network in NETWORKS for batch in results.BATCHES for spec in layers(network, batch)}
    plain = {
        str(spec)
        for spec in specs
        if isinstance(spec, ConvSpec) and set(spec.stride) == {1} and set(spec.kernel_size) in ({3}, {5})
    }
    for way in ("prepared", "unprepared"):
        assert not plain - {
            choice.name for choice in results.read_engine(ENGINE).choices if choice.way == way
        }


# ---------------------------------------------------------------------------- file and page


def test_the_file_holds_what_was_measured(tmp_path: Path) -> None:
    found, path = made_up(), tmp_path / "results.json"
    path.write_text(found.as_json(), encoding="utf-8")
    again = results.read(path)
    assert again.as_json() == found.as_json()
    assert [row.ratio() for row in again.layers] == [row.ratio() for row in found.layers]
    again.set_record(conv(WIDE, 1, prepared=2.0, torch=1.0))  # merged: the later record counts
    assert [row.ratio() for row in again.layers if row.name == WIDE and row.threads == 1] == [0.5]
    again.set_limits(1, {"flops": 1.0, "bytes": 1e12})
    assert again.limits[1] == {"flops": 1e11, "bytes": 1e12}
    path.write_text(json.dumps({"format": 0}), encoding="utf-8")
    with pytest.raises(ValueError, match="measure anew"):
        results.read(path)


def test_losses_stand_on_the_page() -> None:
    def losses(found: Results) -> str:
        text = performance.markdown(found, engine())
        return text.partition("## Where it loses")[2].partition("<details")[0]

    assert "Convolutions, prepared: 0 of 4." in losses(made_up())
    lost = losses(made_up(prepared=2.0))
    assert "Convolutions, prepared: 2 of 4." in lost
    assert lost.count(f"| 0.95x | `{WIDE}` |") == 2
    assert f"| 0.99x ± | `{WIDE}` |" in losses(made_up(prepared=1.91))


def test_pictures_have_a_dot_for_every_layer() -> None:
    found = made_up()
    picture = performance.ratios_picture(found)
    assert picture.count('class="one dot"') == len(POOLS) + 2 + 1  # one in the legend
    assert picture.count('class="two dot"') == len(POOLS) + 2 + 1
    assert f"{WIDE}, one thread: 1.90x PyTorch NCHW" in picture
    assert "ONNX Runtime" in performance.networks_picture(found)


def test_the_page_is_made_from_the_file() -> None:
    rivals = pytest.importorskip("benchmarks.rivals", reason="the engine's compiler is not installed")
    for name, text in rivals.pages().items():
        written = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert written == text, f"docs/{name} is not what the file says: python -m benchmarks.rivals --page"


def test_nothing_is_missing_in_the_file() -> None:
    found = {(row.name, row.op, row.threads) for row in results.read(FILE).layers}
    assert not performance.expected(performance.forward) - found


@pytest.mark.skipif(not BACKWARD.exists(), reason="gradients have not been measured yet")
def test_no_gradient_is_missing_in_the_file() -> None:
    held = results.read(BACKWARD)
    assert not performance.expected(performance.backward) - {(r.name, r.op, r.threads) for r in held.layers}
    assert {(row.name, row.threads) for row in held.networks} == {
        (n, t) for n in MODELS for t in results.THREADS
    }
