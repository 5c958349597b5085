"""fastconv's CPU engine beside PyTorch and ONNX Runtime, layer by layer: measured into JSON, shown on a page.

::

    python -m benchmarks.rivals                     # every layer forwards, about 12 minutes
    python -m benchmarks.rivals --gradients         # every layer backwards, and training steps, about 8 minutes
    python -m benchmarks.rivals --network vgg16 --batch 16 --threads 2     # a part, merged into the same file
    python -m benchmarks.rivals --page              # docs/performance.md and its pictures from the files

Everything that is compared runs in one process and in turns, after its answer has been compared with float64.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import fastconv as fc
from benchmarks import baselines, limits, looking, performance, training
from benchmarks.results import BATCHES, RIVALS, THREADS, Results, read, read_engine
from benchmarks.selection import NETWORKS, SMOKE, TRAINED, gradients, gradients_of, kinds, layers
from fastconv import testing
from fastconv.backends import Unsupported, default_for
from fastconv.backends.numba.kernels.simd import host
from fastconv.compare.machine import cpu_name, versions
from fastconv.nn.models import MODELS
from fastconv.plan import MAX_ERROR, Plan, plan
from fastconv.spec import ConvSpec, Op, PoolSpec, Spec, parse
from fastconv.threads import available_cpus, set_num_threads

Array = Any
ROOT = Path(__file__).parents[1]

# What is measured forwards and backwards; what `benchmarks.engine` measures stands on the same page.
FORWARD, BACKWARD, ENGINE = (
    ROOT / "benchmarks" / f"{name}.json" for name in ("results", "gradients", "engine")
)

# What other machines gave, a folder each with both files.
ELSEWHERE = ROOT / "benchmarks" / "elsewhere"

# A turn is calls worth this long, after calls that are not counted. They find caches cold and threads asleep, and a
# rival's thread that woke on its caller's CPU stays there for up to 10 ms: both are to be seen at their best.
TURN, WARM = 0.004, {1: 0.003, 2: 0.012}
# Calls longer than this are turns of their own, and warm within themselves.
LONG = 0.02
# Rounds of turns: the median of fewer is noise, more tell nothing new.
LEAST, MOST = 5, 31
# What has taken this many times the seconds it was given stops at 3 rounds.
PATIENCE = 8


# ---------------------------------------------------------------------------- whole networks


def vgg16() -> Iterator[str]:
    """VGG16's convolutions and pools, each as often as it stands there, in order."""
    channels = 3
    for size, width, count in ((224, 64, 2), (112, 128, 2), (56, 256, 3), (28, 512, 3), (14, 512, 3)):
        for _ in range(count):
            yield f"n1 c{channels}x{size}x{size} k{width}x3x3 s1 p1 f32"
            channels = width
        yield f"max n1 c{width}x{size}x{size} k2x2 s2 p0 f32"


def resnet50() -> Iterator[str]:
    """ResNet-50's 53 convolutions, each as often as it stands there, in order."""
    yield "n1 c3x224x224 k64x7x7 s2 p3 f32"
    channels, size = 64, 56
    for width, first, blocks in ((64, 1, 3), (128, 2, 4), (256, 2, 6), (512, 2, 3)):
        for block in range(blocks):
            stride = first if block == 0 else 1
            out = size // stride
            yield f"n1 c{channels}x{size}x{size} k{width}x1x1 s1 p0 f32"
            yield f"n1 c{width}x{size}x{size} k{width}x3x3 s{stride} p1 f32"
            yield f"n1 c{width}x{out}x{out} k{4 * width}x1x1 s1 p0 f32"
            if block == 0:
                yield f"n1 c{channels}x{size}x{size} k{4 * width}x1x1 s{stride} p0 f32"
            channels, size = 4 * width, out


# Each network's layers, and whether one reads what the one before gave.
WHOLE: dict[str, tuple[Callable[[], Iterator[str]], bool]] = {
    "vgg16": (vgg16, True),
    "resnet50": (resnet50, False),
}


# ---------------------------------------------------------------------------- timing


def _quiet() -> None:
    """Wait until no thread of this process is busy: those of PyTorch and ONNX Runtime spin after a call.

    ONNX Runtime's do so for 26 ms, and whoever comes next has one core of two. The kernel counts their time by its
    tick of 4 ms, so a shorter look sees nothing.
    """
    for _ in range(20):
        begin, used = time.perf_counter(), time.process_time()
        time.sleep(0.005)
        if time.process_time() - used < 0.1 * (time.perf_counter() - begin):
            return


def _turn(call: Callable[[], Any], count: int, warm: float) -> float:
    end = time.perf_counter() + warm
    while time.perf_counter() < end:
        call()
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def in_turns(calls: dict[str, Callable[[], Any]], seconds: float, threads: int) -> dict[str, list[float]]:
    """Seconds of each call in every round: each is called in turn, then each again, for about `seconds`.

    The order changes from round to round: who comes after whom is worth up to a quarter on two threads.
    """
    gc.disable()
    try:
        warm = WARM[min(threads, 2)]
        once = {name: _turn(call, 1, warm) for name, call in calls.items()}
        counts = {name: max(1, min(1000, math.ceil(TURN / taken))) for name, taken in once.items()}
        found: dict[str, list[float]] = {name: [] for name in calls}
        order, begin = random.Random(0), time.perf_counter()
        for done in range(MOST):
            spent = time.perf_counter() - begin
            if spent > seconds and done >= (LEAST if spent < PATIENCE * seconds else 3):
                break
            for name in order.sample(list(calls), len(calls)):
                if threads > 1:
                    _quiet()
                found[name].append(_turn(calls[name], counts[name], warm if once[name] < LONG else 0))
        return found
    finally:
        gc.enable()


def quartiles(times: Sequence[float]) -> list[float]:
    """Lower quartile, median and upper quartile, to four digits."""
    return [float(f"{value:.4g}") for value in np.quantile(times, (0.25, 0.5, 0.75))]


# ---------------------------------------------------------------------------- candidates


class Candidate(NamedTuple):
    """One way to compute a problem, how its answer is read, and how far that may be off."""

    run: Callable[[], Any]
    read: Callable[[Any], tuple[Array, ...]]
    allowed: float


def _plan(spec: Spec, precision: str = "default", prepared: bool = False, op: Op | None = None) -> Plan:
    op = op or spec.ops[0]
    return plan(spec, op, default_for("numpy", op), "auto", precision, None, prepared)


def _arguments(spec: ConvSpec) -> dict[str, Any]:
    padding = tuple(before for before, _ in spec.padding)
    return {"stride": spec.stride, "padding": padding, "dilation": spec.dilation, "groups": spec.groups}


def prepared(
    spec: ConvSpec, weight: Array, bias: Array, precision: str = "default"
) -> Callable[[Array], Array]:
    """fastconv with its weights packed ahead of the calls."""
    made: Callable[[Array], Array] = fc.prepare_conv2d(
        weight, bias, **_arguments(spec), backend="auto", precision=precision
    )
    return made


def _window(spec: PoolSpec) -> dict[str, Any]:
    padding = tuple(before for before, _ in spec.padding)
    fields = {"kernel_size": spec.kernel_size, "stride": spec.stride, "padding": padding}
    return {**fields, "ceil_mode": spec.ceil_mode, "backend": "auto"}


def pooled(spec: PoolSpec) -> Callable[[Array], Any]:
    """fastconv's pool as a function of the input."""
    if spec.output_size:
        return partial(fc.adaptive_avg_pool2d, output_size=spec.output_size, backend="auto")
    fields = _window(spec)
    if spec.mode == "avg":
        return partial(fc.avg_pool2d, **fields)
    return partial(fc.max_pool2d, return_indices=spec.indices, **fields)


def _read(result: Any) -> tuple[Array, ...]:
    return result if isinstance(result, tuple) else (result,)


def ours(spec: Spec, x: Array, weight: Array | None, bias: Array | None) -> dict[str, Candidate]:
    """fastconv's own ways with a problem."""
    if isinstance(spec, PoolSpec):
        return {"pool": Candidate(partial(pooled(spec), x), _read, testing.tolerance(_plan(spec), (x,)))}
    assert weight is not None
    assert bias is not None
    default, highest = (prepared(spec, weight, bias, precision) for precision in ("default", "highest"))
    runs: dict[str, tuple[Callable[[], Any], Plan]] = {
        "prepared": (partial(default, x), _plan(spec, prepared=True)),
        "unprepared": (partial(fc.conv2d, x, weight, bias, **_arguments(spec), backend="auto"), _plan(spec)),
        "highest": (partial(highest, x), _plan(spec, "highest", prepared=True)),
    }
    return {
        name: Candidate(run, _read, testing.tolerance(made, (x, weight), bias))
        for name, (run, made) in runs.items()
    }


def our_gradient(spec: Spec, op: Op, given: Sequence[Array]) -> Callable[[], Array]:
    """A call of fastconv's function for one gradient."""
    first, second = given
    if isinstance(spec, ConvSpec):
        fields = {**_arguments(spec), "backend": "auto"}
        if op is Op.CONV_INPUT_GRAD:
            return partial(fc.grad.conv2d_input, spec.input_shape, second, first, **fields)
        return partial(fc.grad.conv2d_weight, first, spec.weight_shape, second, **fields)
    if spec.output_size:
        return partial(fc.grad.adaptive_avg_pool2d, first, second, spec.output_size, backend="auto")
    if spec.mode == "avg":
        return partial(fc.grad.avg_pool2d, first, second, **_window(spec))
    x = np.empty(spec.input_shape, spec.dtype)  # the indices say where its maxima are
    return partial(fc.grad.max_pool2d, first, x, indices=second, **_window(spec))


def theirs(
    rivals: Mapping[str, Callable[[], baselines.Rival]], given: Any, allowed: float
) -> tuple[dict[str, Candidate], dict[str, str]]:
    """The rivals on what they are given, and why others do not take part."""
    found, refused = {}, {}
    for name, make in rivals.items():
        try:
            rival = make()
        except Unsupported as refusal:
            refused[name] = str(refusal)
            continue
        found[name] = Candidate(partial(rival.run, rival.place(given)), rival.read, allowed)
    return found, refused


def algorithms(spec: Spec, op: Op) -> dict[str, str]:
    """What fastconv runs in each of its ways."""
    if op is not spec.ops[0]:
        return {"gradient": _named(_plan(spec, op=op))}
    if isinstance(spec, PoolSpec):
        return {"pool": _named(_plan(spec))}
    ways = {"prepared": ("default", True), "unprepared": ("default", False), "highest": ("highest", True)}
    return {name: _named(_plan(spec, *how)) for name, how in ways.items()}


def _named(made: Plan) -> str:
    return made.algorithm if made.backend == "numba" else f"{made.backend}/{made.algorithm}"


def limit(spec: Spec, op: Op, threads: int) -> tuple[Callable[[], None], float]:
    """What bounds a problem from below, and what its seconds are to be multiplied by."""
    if isinstance(spec, ConvSpec):
        call, operations = limits.multiply_adds(threads)
        return call, spec.flops(op) / operations
    return limits.copying(spec.nbytes(op), threads), 1.0


# ---------------------------------------------------------------------------- one layer, one network, one step

# Ours, theirs, and why others do not take part.
Ways = tuple[dict[str, Candidate], dict[str, Candidate], dict[str, str]]


def _tiled(few: Spec, op: Op, given: Sequence[Array], batch: int) -> list[Array]:
    """Operands of a batch that repeats the images of `few`."""
    return [
        array if shape.name == "weight" else np.tile(array, (batch // few.batch, *[1] * (array.ndim - 1)))
        for array, shape in zip(given, few.shapes(op), strict=False)
    ]


def _forward(spec: Spec, few: Spec) -> tuple[tuple[Array, ...], Callable[[], Ways]]:
    """The float64 answer for a few images, and all ways to it for all."""
    x, weight, bias = baselines.operands(few)
    expected = baselines.reference(few, x, weight, bias)
    allowed = baselines.tolerance(few, x, weight, bias)
    (x,) = _tiled(few, spec.ops[0], [x], spec.batch)
    rivals = {name: partial(baselines.BASELINES[name], spec, weight, bias) for name in RIVALS}
    return expected, lambda: (ours(spec, x, weight, bias), *theirs(rivals, x, allowed))


def _backward(spec: Spec, few: Spec, op: Op) -> tuple[tuple[Array, ...], Callable[[], Ways]]:
    """The same for a gradient."""
    given = baselines.gradient_operands(few, op)
    expected = testing.reference(few, op, given, backend="im2col")
    if op is Op.CONV_WEIGHT_GRAD:
        expected *= spec.batch // few.batch  # a sum over all images
    # A tolerance asks for the operands' largest and mean sizes: a few images have those of all.
    plans = _plan(spec, op=op), plan(spec, op, "im2col", "auto", "highest")
    mine, allowed = (testing.tolerance(made, given) for made in plans)
    arrays = _tiled(few, op, given, spec.batch)
    own = {"gradient": Candidate(our_gradient(spec, op, arrays), _read, mine)}
    rivals = {name: partial(make, spec, op) for name, make in baselines.GRADIENTS.items()}
    return (expected,), lambda: (own, *theirs(rivals, arrays, allowed))


def measure_layer(spec: Spec, op: Op, threads: Sequence[int], seconds: float) -> Iterator[dict[str, Any]]:
    """One record for each number of threads.

    A batch repeats two images, so that every image of a result can be checked at the price of two.
    """
    few, is_forward = spec.with_batch(min(spec.batch, 2)), op is spec.ops[0]
    expected, ways = _forward(spec, few) if is_forward else _backward(spec, few, op)
    scale = max(float(np.max(np.abs(expected[0]))), 1e-30)
    for count in threads:
        set_num_threads(count)
        mine, others, refused = ways()
        errors = {}
        for name, candidate in {**mine, **others}.items():
            answer = candidate.read(candidate.run())
            error, detail = baselines.disagreement(answer, expected, candidate.allowed, len(expected[0]))
            if detail and name in mine:
                raise AssertionError(f"{name} of '{spec}' ({op}) on {count} threads is wrong: {detail}")
            if detail:
                refused[name] = f"its answer is another: {detail}"
                del others[name]
                continue
            errors[name] = float(f"{error / scale:.2g}")
        bound, factor = limit(spec, op, count)
        calls = {name: candidate.run for name, candidate in {**mine, **others}.items()}
        times = in_turns({**calls, "limit": bound}, seconds, count)
        times["limit"] = [taken * factor for taken in times["limit"]]
        record = {
            "problem": str(spec),
            "threads": count,
            "rounds": len(times["limit"]),
            "seconds": {name: quartiles(found) for name, found in times.items()},
            "algorithms": algorithms(spec, op),
            "errors": errors,
        }
        yield record | ({} if is_forward else {"op": op.value}) | ({"refused": refused} if refused else {})


def measure_step(network: str, threads: Sequence[int], seconds: float) -> Iterator[dict[str, Any]]:
    """One training step of a small network: its time, and the memory it takes."""
    exact, allowed = training.reference(network)
    peaks = training.peaks(network, threads)
    for count in threads:
        set_num_threads(count)
        runs = {}
        for way, make in training.STEPS.items():
            with contextlib.suppress(Unsupported):
                step = make(network)
                step.run()
                for result, answer, most in zip(step.gradients(), exact, allowed, strict=True):
                    _, detail = testing.compare(result, answer, most)
                    if detail:
                        raise AssertionError(f"{way} of {network} on {count} threads is wrong: {detail}")
                runs[way] = step.run
        times = in_turns(runs, 4 * seconds, count)
        yield {
            "network": network,
            "threads": count,
            "rounds": len(times["step"]),
            "seconds": {way: quartiles(found) for way, found in times.items()},
            "peaks": {way: peaks[way][count] for way in runs},
        }


def measure_network(
    name: str, threads: Sequence[int], seconds: float, shrink: int = 1
) -> Iterator[dict[str, Any]]:
    """A whole network, chained (each layer reads what the one before gave) or one layer after the other."""
    texts, chained = WHOLE[name]
    specs = [_shrunk(parse(text), shrink) for text in texts()]
    given = [baselines.operands(spec, seed) for seed, spec in enumerate(specs)]
    for spec, (_, weight, _) in zip(specs, given, strict=True):
        if weight is not None:  # of gain 1, so that a chain neither fades nor grows
            weight /= np.float32(math.sqrt(spec.dot_length(spec.ops[0])))
    answers, x = [], given[0][0]
    for spec, (own, weight, bias) in zip(specs, given, strict=True):
        (x,) = baselines.reference(spec, x if chained else own, weight, bias)
        answers.append(x)
    if chained:
        answers = answers[-1:]
    # Each layer may add what a transform may, and with a gain of 1 none makes it larger.
    allowed = [2 * MAX_ERROR * (len(specs) if chained else 1) * float(np.max(np.abs(y))) for y in answers]
    for count in threads:
        set_num_threads(count)
        runs = _network_runs(specs, given, chained)
        for way, run in runs.items():
            for result, answer, most in zip(run(), answers, allowed, strict=True):
                _, detail = testing.compare(np.asarray(result), answer, most)
                if detail:
                    raise AssertionError(f"{way} of {name} on {count} threads is wrong: {detail}")
        times = in_turns(runs, 4 * seconds, count)
        yield {
            "network": name,
            "threads": count,
            "rounds": len(next(iter(times.values()))),
            "seconds": {way: quartiles(found) for way, found in times.items()},
        }


def measure_looking(threads: Sequence[int], seconds: float) -> Iterator[dict[str, Any]]:
    """VGG16 and Grad-CAM of one photograph."""
    x = looking.photograph()
    for count in threads:
        set_num_threads(count)
        times = in_turns(looking.ways(x), 4 * seconds, count)
        yield {
            "network": "looking",
            "threads": count,
            "rounds": len(times["unprepared"]),
            "seconds": {way: quartiles(found) for way, found in times.items()},
        }


def _shrunk(spec: Spec, divisor: int) -> Spec:
    return replace(spec, in_size=tuple(n // divisor for n in spec.in_size))


def _network_runs(
    specs: Sequence[Spec], given: Sequence[tuple[Array, Array | None, Array | None]], chained: bool
) -> dict[str, Callable[[], list[Any]]]:
    inputs = [x for x, _, _ in given][: 1 if chained else None]
    constants = [(spec, weight, bias) for spec, (_, weight, bias) in zip(specs, given, strict=True)]
    ways: dict[str, list[Callable[[Any], Any]]] = {"prepared": [], "unprepared": [], "highest": []}
    placed = dict.fromkeys(ways, inputs)
    for spec, weight, bias in constants:
        if isinstance(spec, PoolSpec):
            for functions in ways.values():
                functions.append(pooled(spec))
            continue
        fields = {**_arguments(spec), "weight": weight, "bias": bias, "backend": "auto"}
        ways["prepared"].append(prepared(spec, weight, bias))
        ways["unprepared"].append(partial(fc.conv2d, **fields))
        ways["highest"].append(prepared(spec, weight, bias, "highest"))
    for name in ("torch", "torch channels_last"):
        with contextlib.suppress(Unsupported):
            made = [baselines.BASELINES[name](*layer) for layer in constants]
            ways[name] = [rival.run for rival in made]
            placed[name] = [rival.place(x) for rival, x in zip(made, inputs, strict=False)]
    runs: dict[str, Callable[[], list[Any]]] = {
        way: partial(_chain if chained else _each, functions, placed[way]) for way, functions in ways.items()
    }
    with contextlib.suppress(Unsupported):
        # One session for all: the threads of 53 would spin side by side.
        runs["onnxruntime"] = partial(baselines.onnx_session(constants, chained), inputs)
    return runs


def _chain(functions: Sequence[Callable[[Any], Any]], inputs: Sequence[Any]) -> list[Any]:
    (x,) = inputs
    for function in functions:
        x = function(x)
    return [x]


def _each(functions: Sequence[Callable[[Any], Any]], inputs: Sequence[Any]) -> list[Any]:
    return [function(x) for function, x in zip(functions, inputs, strict=True)]


# ---------------------------------------------------------------------------- the machine, the file, the command


def _engine() -> str:
    """A digest of the engine's sources: numbers of two engines are never mixed."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "fastconv" / "backends" / "numba").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def machine() -> dict[str, Any]:
    """What a reader must know of the machine, and nothing that tells whose it is."""
    shown = ("fastconv", "numpy", "numba", "torch", "onnxruntime")
    return {
        "cpu": cpu_name(),
        "cores": available_cpus(),
        "vectors": host().name,
        "engine": _engine(),
        "packages": {name: version for name, version in versions().items() if name in shown},
    }


def machine_limits(threads: int) -> dict[str, float]:
    """Multiply-adds and copied bytes per second, the best of several."""
    call, operations = limits.multiply_adds(threads)
    nbytes = 256 << 20
    copy = limits.copying(nbytes, threads)
    rates = {
        "flops": operations / min(_turn(call, 1, WARM[1]) for _ in range(5)),
        "bytes": nbytes / min(_turn(copy, 1, WARM[1]) for _ in range(5)),
    }
    return {name: float(f"{rate:.4g}") for name, rate in rates.items()}


def progress() -> Progress:
    return Progress(
        TextColumn("{task.completed}/{task.total}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"),
        console=Console(stderr=True),
    )  # fmt: skip


# What is measured, in words, and its records.
Job = tuple[str, Iterator[dict[str, Any]]]


def measure(jobs: Sequence[Job], threads: Sequence[int], results: Results) -> None:
    """Measure into `results`, which holds what is done when this is interrupted."""
    with progress() as bar:
        task = bar.add_task("this machine", total=len(jobs))
        for count in threads:
            results.set_limits(count, machine_limits(count))
        for words, records in jobs:
            bar.update(task, description=words)
            for record in records:
                results.set_record(record)
            bar.advance(task)


def forward_jobs(
    specs: Iterable[Spec], networks: Iterable[str], threads: Sequence[int], seconds: float, shrink: int = 1
) -> list[Job]:
    """Layers, and whole networks."""
    layered = [(str(spec), measure_layer(spec, spec.ops[0], threads, seconds)) for spec in specs]
    whole = [(f"{name}, whole", measure_network(name, threads, seconds, shrink)) for name in networks]
    if "vgg16" in networks and shrink == 1:
        whole.append(("VGG16 and Grad-CAM of a photograph", measure_looking(threads, seconds)))
    return [*layered, *whole]


def backward_jobs(
    specs: Iterable[Spec], networks: Iterable[str], threads: Sequence[int], seconds: float
) -> list[Job]:
    """Gradients of layers, and training steps."""
    layered = [(f"{spec}, {op}", measure_layer(spec, op, threads, seconds)) for spec, op in gradients(specs)]
    return [*layered, *((f"{name}, a step", measure_step(name, threads, seconds)) for name in networks)]


def pages(path: Path = FORWARD) -> dict[str, str]:
    """The page and its pictures, from the files."""
    trained = read(BACKWARD) if BACKWARD.exists() else None
    elsewhere = {
        folder.name: (read(folder / FORWARD.name), read(folder / BACKWARD.name))
        for folder in sorted(ELSEWHERE.iterdir())
    }
    return performance.pages(read(path), read_engine(ENGINE), trained, elsewhere)


def main(
    network: Annotated[list[str] | None, typer.Option(help="Only this network; may be repeated.")] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Only this batch: 1 or 16; may be repeated.")
    ] = None,
    threads: Annotated[list[int] | None, typer.Option(help="Only so many: 1 or 2; may be repeated.")] = None,
    pools: Annotated[bool, typer.Option("--pools", help="Only pools, and no whole network.")] = False,
    backward: Annotated[
        bool, typer.Option("--gradients", help="Gradients and training steps, in a file of their own.")
    ] = False,
    seconds: Annotated[float, typer.Option(help="For each layer and number of threads, about.")] = 0.35,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Where results are kept, and merged.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what the file holds.")] = False,
    page: Annotated[
        bool, typer.Option("--page", help="Measure nothing: write the page from the files.")
    ] = False,
    docs: Annotated[Path, typer.Option(help="Where the page goes.")] = ROOT / "docs",
    smoke: Annotated[
        bool, typer.Option("--smoke", help="A few small problems in seconds, kept nowhere.")
    ] = False,
) -> None:
    """Measure every layer of every network beside its rivals, or write the page from what was measured."""
    console = Console(stderr=True)
    if page:
        for written in performance.write(pages(json_path or FORWARD), docs):
            console.print(f"wrote {written}", soft_wrap=True)
        return
    if smoke:
        small = [spec for text in SMOKE for spec in kinds(parse(text))]
        both = Results(machine()), Results(machine())
        measure(forward_jobs(small, WHOLE, (1,), 0.02, shrink=7), (1,), both[0])
        measure(backward_jobs(small, ["simple"], (1,), 0.02), (1,), both[1])
        text = performance.markdown(both[0], read_engine(ENGINE), both[1])
        counts = [len(found.layers) for found in both] + [len(found.networks) for found in both]
        console.print(
            "{} layers, {} gradients, {} networks, {} training steps, ".format(*counts)
            + f"a page of {len(text)} bytes"
        )
        return
    for option, given, known in (
        ("--network", network, NETWORKS),
        ("--batch", batch, BATCHES),
        ("--threads", threads, THREADS),
    ):
        for value in given or ():
            if value not in known:
                names = ", ".join(map(str, known))
                raise typer.BadParameter(f"{option}: got {value!r}, expected one of {names}")
    counts = threads or list(THREADS)
    if max(counts) > available_cpus():
        raise typer.BadParameter(
            f"--threads: got {max(counts)}, expected at most {available_cpus()}, the CPUs here"
        )
    results, path = Results(machine()), json_path or (BACKWARD if backward else FORWARD)
    if path.exists() and not fresh:
        results = read(path)
        if results.machine != machine():
            raise typer.BadParameter(
                f"--json: {path.name} is of another machine, version or engine; --fresh begins anew"
            )
    chosen, batches = network or (TRAINED if backward else NETWORKS), batch or list(BATCHES)
    specs = dict.fromkeys(spec for size in batches for name in chosen for spec in layers(name, size))
    wanted = [spec for spec in specs if isinstance(spec, PoolSpec) or not pools]
    if backward:
        made = {spec for size in batches for name in chosen for spec, _ in gradients_of(name, size)}
        wanted = [spec for spec in wanted if spec in made]
        steps = [name for name in MODELS if not pools and (not network or name in network)]
        jobs = backward_jobs(wanted, steps, counts, seconds)
    else:
        whole = [name for name in WHOLE if name in chosen and 1 in batches and not pools]
        jobs = forward_jobs(wanted, whole, counts, seconds)
    try:
        measure(jobs, counts, results)
    finally:
        path.write_text(results.as_json(), encoding="utf-8")
        console.print(f"wrote {path}", soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
