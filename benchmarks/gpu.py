"""The CuPy engine beside cuDNN (through PyTorch), cuBLAS and a plain copy, on whatever card is here.

``python -m benchmarks.gpu`` measures and writes ``benchmarks/gpu.json`` and ``docs/performance-gpu.md``; ``--page`` writes
the page alone. Answers are compared before anything is timed, times are medians between events on the stream, and losses
stay in the table, as do wrong answers, which end it with an error. It ends after ``--minutes``: what it did not come to is
counted, never guessed.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import fastconv as fc
from fastconv import arguments, testing
from fastconv.backends import Unsupported, backends, fetch, put, wait
from fastconv.plan import Plan, plan
from fastconv.problems import PROBLEMS
from fastconv.spec import ConvSpec, Op, PoolSpec, Spec, parse

RESULTS = Path(__file__).with_name("gpu.json")
PAGE = Path(__file__).parent.parent / "docs" / "performance-gpu.md"

BATCH = 32
NETWORKS = ("resnet50", "vgg16", "mobilenet")
DTYPES = ("float32", "float16", "bfloat16")

# Gradients are measured in these; in bfloat16 the same kernels do the same work.
GRADIENTS = ("float32", "float16")

MINUTES = 8.0

# What the page holds results against: times as fast as cuDNN, the part of a copy's rate, seconds of the host's.
STRICT, HALF, OF_COPYING, CALL = 1.0, 0.6, 0.8, 20e-6

# Five rounds of each, in turns, of this long or so many calls: two events' resolution (0.5 us) is little of either.
ROUND_SECONDS = 3e-4
MOST_CALLS = 20
ROUNDS = 5

# The device waits this many seconds more than the host took to ask for a round, so that it never waits for the host.
AHEAD = 3e-4

# Waits for so many nanoseconds.
HOLD = r"""
extern "C" __global__ void hold(long long nanoseconds) {
    long long begin, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(begin));
    do asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)); while (now - begin < nanoseconds);
}
"""

# Calls of the engine in a row, on a layer the card finishes long before the host has asked for the next.
CALLS = 200

# A copy of this many bytes is far larger than any card's L2.
COPIED = 1 << 30

# What a result may depend on.
PACKAGES = (
    "cupy-cuda12x",
    "cupy-cuda13x",
    "nvidia-cudnn-frontend",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
    "torch",
    "numpy",
)

# Columns of the page: ours on images with channels last; by name on tensor cores, which in float32 is three products of tf32
# for one, and our algorithm `cudnn`, where its extra is installed, on either order of images; and what it is held against,
# cuDNN through PyTorch and cuBLAS.
LAST = " channels last"
NAMED = ("implicit_gemm_mma", "cudnn", "cudnn" + LAST)
RIVALS = ("cuDNN", "cuDNN channels_last", "cuBLAS alone")

Call = Callable[[], Any]


def cases(networks: Sequence[str], batch: int) -> Iterator[tuple[Spec, Op]]:
    """Every layer of the networks in two types, then its gradients, then what the same kernels do in a third."""
    texts = dict.fromkeys(problem for network in networks for problem in PROBLEMS[network])

    def layers(dtype: str) -> Iterator[Spec]:
        return (typed(parse(text).with_batch(batch), dtype) for text in texts)

    for dtype in GRADIENTS:
        yield from ((spec, spec.ops[0]) for spec in layers(dtype))
    for dtype in GRADIENTS:
        for spec in layers(dtype):
            if isinstance(spec, ConvSpec):
                yield spec, Op.CONV_INPUT_GRAD
                yield spec, Op.CONV_WEIGHT_GRAD
            elif isinstance(spec, PoolSpec):
                yield replace(spec, indices=spec.mode == "max"), Op.POOL_INPUT_GRAD
    for dtype in set(DTYPES).difference(GRADIENTS):
        yield from ((spec, spec.ops[0]) for spec in layers(dtype))


def typed(spec: Spec, dtype: str) -> Spec:
    """The same problem in another type."""
    if isinstance(spec, ConvSpec):
        return replace(spec, dtype=dtype, out_dtype=dtype)
    return replace(spec, dtype=dtype)


def in_turns(calls: dict[str, Call]) -> dict[str, float]:
    """Median seconds of each call on the device, in turns, on the current stream."""
    rounds = {}
    for name, call in calls.items():
        call()
        once = _between(call, 1, AHEAD)
        rounds[name] = partial(_between, call, min(math.ceil(ROUND_SECONDS / once), MOST_CALLS), _host(call))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, measured in rounds.items():
            times[name].append(measured())
    return {name: statistics.median(some) for name, some in times.items()}


def _between(call: Call, count: int, host: float) -> float:
    """Seconds of one of `count` calls, asked for behind a kernel that waits until the host has asked for all of them."""
    import cupy

    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    _hold()((1,), (1,), (np.int64((count * host + AHEAD) * 1e9),))
    begin.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return float(cupy.cuda.get_elapsed_time(begin, end)) / 1e3 / count


@cache
def _hold() -> Any:
    import cupy

    return cupy.RawKernel(HOLD, "hold")


def _host(call: Call) -> float:
    """Seconds the host takes to ask for a call."""
    wait("cupy")
    begin = time.perf_counter()
    call()
    seconds = time.perf_counter() - begin
    wait("cupy")
    return seconds


def on_card(given: Sequence[Any], dtype: str) -> list[Any]:
    """Small whole numbers as arrays of this type on the card, where they are cast; indices as they are."""
    placed = []
    for array in given:
        there = put("cupy", array)
        if array.dtype.name == "int64":
            placed.append(there)
        elif dtype == "bfloat16":  # the upper half of a float32, which holds a small whole number
            import ml_dtypes

            upper = there.astype("f4").view("u2")[..., 1::2]
            placed.append(upper.copy().view(ml_dtypes.bfloat16))
        else:
            placed.append(there.astype(dtype))
    return placed


def small(spec: Spec, op: Op) -> list[Any]:
    """Operands on the host: whole numbers from -4 to 4 in bytes, and the indices a max pool made of such."""
    rng = np.random.default_rng(0)
    shapes = spec.shapes(op)[:-1]
    # Whole bytes come ten times as fast as a range of them; that 0 to 3 of 9 values come once more in 256 is nothing here.
    given = [(rng.integers(0, 256, shape.shape, "u1") % 9).view("i1") - np.int8(4) for shape in shapes]
    if isinstance(spec, PoolSpec) and spec.indices:
        (x,) = on_card(small(replace(spec, indices=False), Op.POOL), spec.dtype)
        given[1] = fetch("cupy", plan(spec, Op.POOL, "cupy")(x)[1])
    return given


def moved(array: Any) -> Any:
    """A copy whose channels are neighbours in memory."""
    last = (0, *range(2, array.ndim), 1)
    back = (0, array.ndim - 1, *range(1, array.ndim - 1))
    return array.transpose(last).copy().transpose(back)


def ours(spec: Spec, op: Op, placed: Sequence[Any]) -> dict[str, tuple[Plan, Call]]:
    """Every algorithm of ours on operands that are on the card, writing to a result that is there too.

    The one that is chosen, of plain sums as cuDNN's are, and `cudnn` are also given images and their gradients with channels
    last, as the functions people call hand them on: a gradient in 32 bits comes in C order.
    """
    found: dict[str, tuple[Plan, Call]] = {}
    for made in testing.plans(spec, op, "cupy"):
        if isinstance(made, Plan):
            out = made(*placed)
            found[made.algorithm] = made, partial(made, *placed, out=out)
    chosen = plan(spec, op, "cupy", precision="highest")
    images = ("input", "grad_output")
    last = [
        arguments.operand(moved(array), shape) if shape.name in images else array
        for array, shape in zip(placed, spec.shapes(op), strict=False)
    ]
    for made in (chosen, *(made for made, _ in list(found.values()) if made.algorithm == "cudnn")):
        with contextlib.suppress(Unsupported):  # cuDNN says in a layout's first call what it does not take
            found[made.algorithm + LAST] = made, partial(made, *last, out=made(*last))
    return found


def cudnn(
    spec: Spec, op: Op, placed: Sequence[Any], channels_last: bool = False, dtype: str = ""
) -> Call | None:
    """The same by PyTorch, TF32 off; None where it has no such function.

    Both libraries' current stream is the null stream, where our events are.
    """
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    import cupy

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    # Of what is not timed, the float64 reference, its fastest algorithm need not be looked for.
    torch.backends.cudnn.benchmark = not dtype
    order = torch.channels_last if channels_last else torch.contiguous_format
    tensors = [_tensor(array) for array in placed]
    if dtype:
        tensors = [each.to(getattr(torch, dtype)) if each.is_floating_point() else each for each in tensors]
    assert torch.cuda.current_stream().cuda_stream == cupy.cuda.get_current_stream().ptr
    return theirs(spec, op, [each.contiguous(memory_format=order) for each in tensors])


def theirs(spec: Spec, op: Op, tensors: Sequence[Any]) -> Call | None:
    """PyTorch's function for one op, gradients without autograd's graph; None where it has none."""
    import torch

    if spec.rank != 2 or any(first != last for first, last in spec.padding):
        return None
    before = tuple(pads[0] for pads in spec.padding)
    functions, aten = torch.nn.functional, torch.ops.aten
    first, *others = tensors
    order = (
        torch.channels_last
        if first.is_contiguous(memory_format=torch.channels_last)
        else torch.contiguous_format
    )

    def blank(shape: tuple[int, ...]) -> Any:
        return torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=order)

    if isinstance(spec, ConvSpec):
        fields = spec.stride, before, spec.dilation
        if op is Op.CONV:
            return partial(functions.conv2d, first, others[0], None, *fields, spec.groups)
        at = int(op is Op.CONV_WEIGHT_GRAD)
        dy = others[0] if at else first
        read = (first, blank(spec.weight_shape)) if at else (blank(spec.input_shape), others[0])
        mask = not at, bool(at), False
        backward = partial(
            aten.convolution_backward.default, dy, *read, None, *fields, False, (0, 0), spec.groups, mask
        )
        return lambda: backward()[at]
    if spec.mode == "lp":
        return None
    if spec.output_size:
        if spec.mode != "avg":
            return None
        if op is Op.POOL:
            return partial(functions.adaptive_avg_pool2d, first, spec.output_size)
        return partial(aten._adaptive_avg_pool2d_backward.default, first, blank(spec.input_shape))
    window = spec.kernel_size, spec.stride, before
    if op is Op.POOL:
        pool = functions.max_pool2d if spec.mode == "max" else functions.avg_pool2d
        return partial(pool, first, *window, ceil_mode=spec.ceil_mode)
    x = blank(spec.input_shape)
    if spec.mode == "max":
        return partial(
            aten.max_pool2d_with_indices_backward.default,
            first, x, *window, spec.dilation, spec.ceil_mode, others[0],
        )  # fmt: skip
    average = spec.ceil_mode, spec.count_include_pad, spec.divisor_override or None
    return partial(aten.avg_pool2d_backward.default, first, x, *window, *average)


def _tensor(array: Any) -> Any:
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_dlpack(array.view("i2")).view(torch.bfloat16)
    return torch.from_dlpack(array)


def cublas(spec: Spec, op: Op) -> Call | None:
    """One matrix product as large as the convolution's: what cuBLAS needs when the columns are there already."""
    if not isinstance(spec, ConvSpec) or spec.groups > 1 or spec.dtype == "bfloat16":
        return None
    k = spec.dot_length(op)
    m = spec.in_channels if op is Op.CONV_INPUT_GRAD else spec.out_channels
    return _matmul(m, spec.flops(op) // (2 * m * k), k, spec.dtype)


def _matmul(m: int, n: int, k: int, dtype: str) -> Call:
    import cupy

    left, right = cupy.ones((m, k), dtype), cupy.ones((k, n), dtype)
    return partial(cupy.matmul, left, right, out=cupy.empty((m, n), dtype))


def measure_layer(spec: Spec, op: Op, copy_rate: float) -> dict[str, Any]:
    """One op of a layer: answers first, then times of what is right.

    Raises
    ------
    AssertionError
        If what is chosen is wrong.
    """
    given = small(spec, op)
    placed = on_card(given, spec.dtype)
    made = ours(spec, op, placed)
    chosen = plan(spec, op, "cupy", precision="highest").algorithm
    reference = cudnn(spec, op, placed, dtype="float64")
    wrong = {} if reference is None else _wrong(made, reference(), given)
    for name, told in wrong.items():
        if name in (chosen, chosen + LAST):
            raise AssertionError(told)
        del made[name]
    rivals = {
        "cuDNN": cudnn(spec, op, placed),
        "cuDNN channels_last": cudnn(spec, op, placed, True),
        "cuBLAS alone": cublas(spec, op),
    }
    calls = {name: call for name, (_, call) in made.items()}
    calls |= {name: call for name, call in rivals.items() if call is not None}
    return {
        "problem": str(spec),
        "op": op.value,
        "chosen": chosen,
        "workspace": {name: each.workspace for name, (each, _) in made.items()},
        "seconds": in_turns(calls),
        "copy": spec.nbytes(op) / copy_rate,
        "checked": reference is not None,
        "wrong": list(wrong.values()),
    }


def _wrong(made: dict[str, tuple[Plan, Call]], expected: Any, given: Sequence[Any]) -> dict[str, str]:
    """What is off, of the very results that are timed, on the card beside sums in float64 of the same numbers."""
    found: dict[str, str] = {}
    # Of the first operand's 1e8 numbers the largest alone counts, and looking for it takes the host seconds.
    given = [np.full((1,) * given[0].ndim, abs(int(given[0].min())), "i1"), *given[1:]]
    tolerances: dict[float, float] = {}  # by what a transform adds
    for name, (each, call) in made.items():
        result = call()
        values = _tensor(result[0] if isinstance(result, tuple) else result)
        error = float((values.double() - expected.to(values.dtype).double()).abs().max())
        if each.run.error not in tolerances:
            tolerances[each.run.error] = testing.tolerance(each, given)
        allowed = tolerances[each.run.error]
        if not error <= allowed:
            found[name] = f"{name} ({each.run.note}) is off by {error}, allowed are {allowed}"
    return found


def call_overhead() -> float:
    """Seconds of the host's a warm call takes, from the public function to the launch; nothing is waited for."""
    x, w = (put("cupy", np.ones(shape, "f4")) for shape in ((1, 8, 8, 8), (8, 8, 3, 3)))

    def call() -> None:
        fc.conv2d(x, w, padding=1)

    call()
    times = []
    for _ in range(ROUNDS):
        wait("cupy")
        begin = time.perf_counter()
        for _ in range(CALLS):
            call()
        times.append((time.perf_counter() - begin) / CALLS)
    return statistics.median(times)


def copy_rate() -> float:
    """Bytes read and written a second by a copy."""
    import cupy

    source, target = cupy.zeros(COPIED, "u1"), cupy.empty(COPIED, "u1")
    return 2 * COPIED / in_turns({"copy": partial(cupy.copyto, target, source)})["copy"]


def card() -> dict[str, Any]:
    """What a reader needs to judge the numbers."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "name": properties["name"].decode(),
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "runtime": cupy.cuda.runtime.runtimeGetVersion(),
        "commit": commit.stdout.strip(),
        "packages": {name: _version(name) for name in PACKAGES},
        "copy": copy_rate(),
        "call": call_overhead(),
        "peak": {dtype: _peak(dtype) for dtype in DTYPES},
    }


def _peak(dtype: str) -> float:
    """Operations a second of a large product by cuBLAS; the two 16-bit types are as fast as each other."""
    side = 8192
    call = _matmul(side, side, side, "float16" if dtype == "bfloat16" else dtype)
    return 2 * side**3 / in_turns({"product": call})["product"]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def page(results: dict[str, Any] | None) -> str:
    """The page on performance, from what was measured."""
    lines = ["# Performance on a GPU", ""]
    if results is None:
        return "\n".join(
            [
                *lines,
                "Nothing has been measured: no card has run the engine yet ([what has run where](gpu.md#what-has-run-where)).",
                "On a machine with one `python -m benchmarks.gpu` measures, and writes this page.",
                "",
            ]
        )
    where = results["card"]
    lines += [
        f"{where['name']}, driver {where['driver']}, commit {where['commit'][:12]}; a copy moves {where['copy'] / 1e12:.2f} TB/s. "
        f"Batch {results['batch']}, medians of {ROUNDS} rounds in turns, of the device's time alone, TF32 off.",
        "",
        *_floors(results),
        "",
    ]
    if results["left"]:
        lines += [
            f"Not come to in {results['minutes']:g} minutes: {results['left']} of the layers' functions.",
            "",
        ]
    if otherwise := sum("chosen_then" in row for row in results["layers"]):
        lines += [
            f"For {otherwise} of {len(results['layers'])} another algorithm was chosen in the run than stands here. All were timed; "
            "the estimates were fitted to these times afterwards, and of what they choose then no time with channels last "
            "is known.",
            "",
        ]
    if results["failed"]:
        lines += ["## Failed", "", *(f"- {failure}" for failure in results["failed"]), ""]
    for dtype in DTYPES:
        for op in dict.fromkeys(row["op"] for row in results["layers"]):
            rows = [
                row for row in results["layers"] if row["op"] == op and parse(row["problem"]).dtype == dtype
            ]
            if rows:
                lines += [f"## {op}, {dtype}", "", *_verdicts(rows), "", *_table(rows), ""]
    return "\n".join(lines)


def _networks(row: dict[str, Any]) -> set[str]:
    """Whose layer it is."""
    spec = typed(parse(row["problem"]).with_batch(1), "float32")
    text = str(replace(spec, indices=False) if isinstance(spec, PoolSpec) else spec)
    return {network for network in NETWORKS if text in PROBLEMS[network]}


def _floors(results: dict[str, Any]) -> Iterator[str]:
    """What was aimed at, beside what was reached."""
    card, rows = results["card"], results["layers"]
    yield "| aim | floor | reached |"
    yield "|---|---|---|"
    yield f"| the host's time of a warm call | at most {CALL * 1e6:.0f} us | {card['call'] * 1e6:.1f} us |"
    for op in dict.fromkeys(row["op"] for row in rows):
        convolutions = [
            row for row in rows if row["op"] == op and isinstance(parse(row["problem"]), ConvSpec)
        ]
        strict = [
            rival / row["seconds"][row["chosen"]]
            for row in convolutions
            if parse(row["problem"]).dtype == "float32"
            and _networks(row) & {"resnet50", "vgg16"}
            and (rival := _rival(row))
        ]
        yield from _reached(f"{op}, float32, ResNet-50 and VGG16: times as fast as cuDNN", STRICT, strict)
        half = [
            rival / last
            for row in convolutions
            if parse(row["problem"]).dtype != "float32"
            and (rival := row["seconds"].get("cuDNN channels_last"))
            and (last := row["seconds"].get(row["chosen"] + LAST))
        ]
        yield from _reached(f"{op}, 16 bits, channels last: times as fast as cuDNN", HALF, half)
    for kind, those in (("1x1", _pointwise), ("depthwise", _depthwise), ("pools", _pool)):
        for backwards in (False, True):
            bound = [
                row["copy"] / min(seconds for name, seconds in row["seconds"].items() if name in _ways(row))
                for row in rows
                if _memory_bound(row, card)
                and those(parse(row["problem"]))
                and ("grad" in row["op"]) == backwards
            ]
            which = ", gradients" if backwards else ""
            yield from _reached(f"{kind}{which}, bound by memory: of a copy's rate", OF_COPYING, bound)


def _reached(aim: str, floor: float, ratios: Sequence[float]) -> Iterator[str]:
    if ratios:
        below = sum(ratio < floor for ratio in ratios)
        yield (
            f"| {aim} | {floor:.2f} | {statistics.geometric_mean(ratios):.2f}, the geometric mean of {len(ratios)}, "
            f"{below} of them below |"
        )


def _ways(row: dict[str, Any]) -> tuple[str, str]:
    """What is chosen, on images in C order and with channels last."""
    return row["chosen"], row["chosen"] + LAST


def _pointwise(spec: Spec) -> bool:
    return isinstance(spec, ConvSpec) and math.prod(spec.kernel_size) == 1


def _depthwise(spec: Spec) -> bool:
    return isinstance(spec, ConvSpec) and spec.groups == spec.in_channels > 1


def _pool(spec: Spec) -> bool:
    return isinstance(spec, PoolSpec)


def _memory_bound(row: dict[str, Any], card: dict[str, Any]) -> bool:
    """Whether this card reads and writes the arrays for longer than it multiplies."""
    spec, op = parse(row["problem"]), Op(row["op"])
    return bool(spec.flops(op) / card["peak"][spec.dtype] < row["copy"])


def _rival(row: dict[str, Any]) -> float | None:
    """Seconds of the faster cuDNN."""
    return min((s for name, s in row["seconds"].items() if name.startswith("cuDNN")), default=None)


def _verdicts(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    for word, kind in (("convolutions", ConvSpec), ("pools", PoolSpec)):
        ratios = [
            rival / row["seconds"][row["chosen"]]
            for row in rows
            if isinstance(parse(row["problem"]), kind) and (rival := _rival(row))
        ]
        if ratios:
            lost = sum(ratio < 1 for ratio in ratios)
            yield (
                f"- {word}: {statistics.geometric_mean(ratios):.2f} times as fast as cuDNN's faster layout "
                f"(geometric mean of {len(ratios)} layers, {lost} of them slower)."
            )


def _table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield (
        "| problem | algorithm | ours, us | channels last, us | `implicit_gemm_mma`, us | `cudnn`, us "
        "| `cudnn` channels last, us | cuDNN, us | channels last, us | cuBLAS alone, us | of copying | workspace |"
    )
    yield f"|{'---|' * 12}"
    for row in rows:
        seconds, chosen = row["seconds"], row["chosen"]
        others = (
            f"{seconds[name] * 1e6:.1f}" if name in seconds else "-"
            for name in (chosen + LAST, *NAMED, *RIVALS)
        )
        yield (
            f"| `{row['problem']}` | {chosen} | {seconds[chosen] * 1e6:.1f} | {' | '.join(others)} "
            f"| {row['copy'] / seconds[chosen]:.0%} | {row['workspace'][chosen]:,} |"
        )


def main(
    network: Annotated[list[str] | None, typer.Option(help="A network's layers; may be repeated.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images.")] = BATCH,
    minutes: Annotated[float, typer.Option(help="No further layer is begun after this long.")] = MINUTES,
    only_page: Annotated[bool, typer.Option("--page", help="Write the page from the JSON file.")] = False,
) -> None:
    """Measure on this card, or write the page anew."""
    if not only_page:
        state = backends()["cupy"]
        if state != "available":
            raise typer.BadParameter(state)
        end = time.monotonic() + 60 * minutes
        where = card()
        measured, failed, left = [], [], 0
        for spec, op in cases(network or NETWORKS, batch):
            if time.monotonic() > end:
                left += 1
                continue
            try:
                measured.append(measure_layer(spec, op, where["copy"]))
                failed += [f"{spec}, {op}: {told}" for told in measured[-1]["wrong"]]
            except Unsupported as refusal:
                typer.echo(f"{spec}, {op}: {refusal}", err=True)
            except Exception as error:  # the others' numbers are worth having all the same
                failed.append(f"{spec}, {op}: {type(error).__name__}: {error}")
                typer.echo(failed[-1], err=True)
        found = {
            "card": where, "batch": batch, "minutes": minutes, "left": left, "failed": failed, "layers": measured,
        }  # fmt: skip
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else None
    PAGE.write_text(page(results), encoding="utf-8")
    if results and results["failed"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
