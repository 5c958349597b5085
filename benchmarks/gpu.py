"""The CuPy engine beside cuDNN (through PyTorch), cuBLAS and a plain copy, on whatever card is here.

``python -m benchmarks.gpu`` measures and writes ``benchmarks/gpu.json`` and ``docs/performance-gpu.md``; ``--page`` writes
the page alone. Answers are compared before anything is timed, times are medians between events on the stream, and losses
stay in the table.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import fastconv as fc
from fastconv import testing
from fastconv.backends import Unsupported, backends, fetch, put, wait
from fastconv.plan import Plan, plan
from fastconv.problems import PROBLEMS
from fastconv.spec import ConvSpec, Op, PoolSpec, Spec, parse

RESULTS = Path(__file__).with_name("gpu.json")
PAGE = Path(__file__).parent.parent / "docs" / "performance-gpu.md"

BATCH = 32
NETWORKS = ("resnet50", "vgg16", "mobilenet")
DTYPES = ("float32", "float16", "bfloat16")

# A round lasts about a millisecond, so that two events' resolution (0.5 us) is nothing; seven rounds of each, in turns.
ROUND_SECONDS = 1e-3
ROUNDS = 7

# Calls of the engine in a row, on a layer the card finishes long before the host has asked for the next.
CALLS = 200

# A copy of this many bytes is far larger than any card's L2.
COPIED = 1 << 30

Call = Callable[[], Any]


def layers(networks: Sequence[str], batch: int) -> Iterator[Spec]:
    """Every layer of the networks once, in every type."""
    texts = dict.fromkeys(problem for network in networks for problem in PROBLEMS[network])
    for text in texts:
        for dtype in DTYPES:
            spec = parse(text).with_batch(batch)
            if isinstance(spec, ConvSpec):
                yield replace(spec, dtype=dtype, out_dtype=dtype)
            else:
                yield replace(spec, dtype=dtype)


def in_turns(calls: dict[str, Call]) -> dict[str, float]:
    """Median seconds of each call, on the current stream, in turns."""
    import cupy

    counts = {}
    for name, call in calls.items():
        call()
        cupy.cuda.Device().synchronize()
        counts[name] = max(math.ceil(ROUND_SECONDS / _between(call, 1)), 1)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            times[name].append(_between(call, counts[name]))
    return {name: statistics.median(some) for name, some in times.items()}


def _between(call: Call, count: int) -> float:
    import cupy

    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    begin.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return float(cupy.cuda.get_elapsed_time(begin, end)) / 1e3 / count


def ours(spec: Spec, op: Op, placed: Sequence[Any]) -> dict[str, tuple[Plan, Call]]:
    """Every algorithm of ours on operands that are on the card, writing to a result that is there too."""
    found: dict[str, tuple[Plan, Call]] = {}
    for made in testing.plans(spec, op, "cupy"):
        if isinstance(made, Plan):
            out = made(*placed)
            found[made.algorithm] = made, partial(made, *placed, out=out)
    return found


def cudnn(spec: Spec, placed: Sequence[Any], channels_last: bool) -> Call | None:
    """The same by PyTorch on the same memory and stream, TF32 off; None where it has no such function."""
    try:
        import torch
    except ImportError:
        return None
    if spec.rank != 2 or not torch.cuda.is_available():
        return None
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    order = torch.channels_last if channels_last else torch.contiguous_format
    tensors = [_tensor(array).contiguous(memory_format=order) for array in placed]
    before = tuple(pads[0] for pads in spec.padding)
    if any(first != last for first, last in spec.padding):
        return None
    functions = torch.nn.functional
    if isinstance(spec, ConvSpec):
        return _on_our_stream(
            partial(functions.conv2d, *tensors, None, spec.stride, before, spec.dilation, spec.groups)
        )
    if spec.output_size or spec.mode == "lp":
        return None
    pool = functions.max_pool2d if spec.mode == "max" else functions.avg_pool2d
    return _on_our_stream(
        partial(pool, *tensors, spec.kernel_size, spec.stride, before, ceil_mode=spec.ceil_mode)
    )


def _tensor(array: Any) -> Any:
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_dlpack(array.view("i2")).view(torch.bfloat16)
    return torch.from_dlpack(array)


def _on_our_stream(call: Call) -> Call:
    """PyTorch's work where our events are recorded."""
    import cupy
    import torch

    stream = torch.cuda.ExternalStream(cupy.cuda.get_current_stream().ptr)

    def run() -> Any:
        with torch.cuda.stream(stream):
            return call()

    return run


def cublas(spec: Spec, op: Op) -> Call | None:
    """One matrix product as large as the convolution's: what cuBLAS needs when the columns are there already."""
    import cupy

    if not isinstance(spec, ConvSpec) or spec.groups > 1 or spec.dtype == "bfloat16":
        return None
    m, k = spec.out_channels, spec.dot_length(op)
    n = spec.batch * math.prod(spec.out_size)
    left, right = cupy.ones((m, k), spec.dtype), cupy.ones((k, n), spec.dtype)
    return partial(cupy.matmul, left, right, out=cupy.empty((m, n), spec.dtype))


def measure_layer(spec: Spec, copy_rate: float) -> dict[str, Any]:
    """One layer: answers first, then times."""
    op = spec.ops[0]
    given = testing.operands(spec, op, "integers")
    placed = [put("cupy", array) for array in given]
    made = ours(spec, op, placed)
    rivals = {
        "cuDNN": cudnn(spec, placed, False),
        "cuDNN channels_last": cudnn(spec, placed, True),
        "cuBLAS alone": cublas(spec, op),
    }
    reference = rivals["cuDNN"]
    if reference is not None:
        _check(made, reference(), given)
    calls = {name: call for name, (_, call) in made.items()}
    calls |= {name: call for name, call in rivals.items() if call is not None}
    return {
        "problem": str(spec),
        "chosen": plan(spec, op, "cupy").algorithm,
        "workspace": {name: each.workspace for name, (each, _) in made.items()},
        "seconds": in_turns(calls),
        "copy": spec.nbytes(op) / copy_rate,
        "checked": reference is not None,
    }


def _check(made: dict[str, tuple[Plan, Call]], reference: Any, given: Sequence[Any]) -> None:
    """Whole numbers agree exactly as long as sums hold them; other results to the derived tolerance."""
    expected = reference.float().cpu().numpy().astype("f8")
    for name, (each, call) in made.items():
        result = call()
        values = fetch("cupy", result[0] if isinstance(result, tuple) else result)
        _, detail = testing.compare(values, expected, testing.tolerance(each, given))
        if detail:
            raise AssertionError(f"{name} on {each.spec}: {detail}")


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
        "packages": {name: _version(name) for name in ("cupy-cuda12x", "cupy-cuda13x", "torch", "numpy")},
        "copy": copy_rate(),
        "call": call_overhead(),
    }


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
        f"A warm call costs the host {where['call'] * 1e6:.1f} us. "
        f"Batch {results['batch']}, medians of {ROUNDS} rounds in turns, TF32 off.",
        "",
    ]
    for dtype in DTYPES:
        rows = [row for row in results["layers"] if parse(row["problem"]).dtype == dtype]
        if rows:
            lines += [f"## {dtype}", "", *_verdicts(rows), "", *_table(rows), ""]
    return "\n".join(lines)


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
    yield "| problem | algorithm | ours, us | cuDNN, us | channels last, us | cuBLAS alone, us | of copying | workspace |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        seconds, chosen = row["seconds"], row["chosen"]
        rivals = (f"{seconds[name] * 1e6:.1f}" if name in seconds else "-" for name in RIVALS)
        yield (
            f"| `{row['problem']}` | {chosen} | {seconds[chosen] * 1e6:.1f} | {' | '.join(rivals)} "
            f"| {row['copy'] / seconds[chosen]:.0%} | {row['workspace'][chosen]:,} |"
        )


RIVALS = ("cuDNN", "cuDNN channels_last", "cuBLAS alone")


def main(
    network: Annotated[list[str] | None, typer.Option(help="A network's layers; may be repeated.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images.")] = BATCH,
    only_page: Annotated[bool, typer.Option("--page", help="Write the page from the JSON file.")] = False,
) -> None:
    """Measure on this card, or write the page anew."""
    if not only_page:
        state = backends()["cupy"]
        if state != "available":
            raise typer.BadParameter(state)
        where = card()
        measured = []
        for spec in layers(network or NETWORKS, batch):
            try:
                measured.append(measure_layer(spec, where["copy"]))
            except Unsupported as refusal:
                typer.echo(f"{spec}: {refusal}", err=True)
        RESULTS.write_text(
            json.dumps({"card": where, "batch": batch, "layers": measured}, indent=1) + "\n", encoding="utf-8"
        )
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else None
    PAGE.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
