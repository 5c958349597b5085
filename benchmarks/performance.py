"""From results to ``docs/performance.md`` and its pictures: nothing on that page is typed in by hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from benchmarks.baselines import GRADIENTS
from benchmarks.results import (
    BATCHES,
    COUNT,
    KINDS,
    NETWORK_WORDS,
    OP_WORDS,
    OURS,
    RIVALS,
    THREADS,
    Choice,
    Engine,
    Floor,
    Results,
    Row,
    floors,
    gradient_floors,
    kind,
    mean,
    percent,
    times,
)
from benchmarks.selection import NETWORKS, forwards, gradients_of, layers
from fastconv.spec import ConvSpec, Op, PoolSpec, Spec

PAGE, RATIOS, NETWORK_TIMES, GRADIENT_RATIOS = (
    "performance.md", "performance-layers.svg", "performance-networks.svg", "performance-gradients.svg"
)  # fmt: skip

# Okabe and Ito's palette, which colour-blind readers tell apart; shapes say the same again.
STYLE = """\
svg { font: 12px system-ui, sans-serif; --paper: #fff; --ink: #1f1f1f; --soft: #6b6b6b; --line: #d9d9d9;
  --one: #0072b2; --two: #d55e00; --lost: #f4f4f4; --rival: #b3b3b3; }
@media (prefers-color-scheme: dark) { svg { --paper: #1e2129; --ink: #e6e6e6; --soft: #a3a3a3; --line: #3d414d;
  --one: #56b4e9; --two: #e69f00; --lost: #2a2e38; --rival: #6d7280; } }
text { fill: var(--ink); } .soft { fill: var(--soft); } .bold { font-weight: 600; paint-order: stroke;
  stroke: var(--paper); stroke-width: 3px; } .end { text-anchor: end; }
.middle { text-anchor: middle; } .paper { fill: var(--paper); } .lost { fill: var(--lost); }
.line { stroke: var(--line); fill: none; } .even { stroke: var(--ink); fill: none; }
.one { fill: var(--one); } .two { fill: var(--two); } .rival { fill: var(--rival); }
.dot { opacity: .72; } .mean { stroke: var(--ink); stroke-width: 2; }"""

# As wide as a phone, so that words keep their size there.
WIDTH = 400


def _svg(height: float, title: str, body: Iterable[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="paper" width="{WIDTH}" height="{height:g}" rx="6"/>',
            *body,
            "</svg>\n",
        ]
    )


def _text(x: float, y: float, words: str, look: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}"{look and f" class={look!r}"}>{escape(words)}</text>'.replace("'", '"')


def _mark(threads: int, x: float, y: float, words: str) -> str:
    """A disc for one thread, a diamond for two."""
    title = f"<title>{escape(words)}</title>"
    if threads == 1:
        return f'<circle class="one dot" cx="{x:.1f}" cy="{y:.1f}" r="2.8">{title}</circle>'
    return f'<path class="two dot" d="M{x:.1f} {y - 3.6:.1f}l3.6 3.6-3.6 3.6-3.6-3.6z">{title}</path>'


def _swarm(places: Sequence[float], apart: float) -> list[int]:
    """How many steps above or below its line each dot stands, so that none hides another."""
    taken: dict[int, list[float]] = {}
    steps = [0, *(sign * n for n in range(1, 99) for sign in (1, -1))]
    found = []
    for place in places:
        step = next(s for s in steps if all(abs(place - other) >= apart for other in taken.get(s, ())))
        taken.setdefault(step, []).append(place)
        found.append(step)
    return found


def by_kind(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each kind of layer, and of each of its gradients."""
    groups: dict[str, list[Row]] = {}
    for op in dict.fromkeys(row.op for row in sorted(rows, key=lambda row: list(Op).index(row.op))):
        for name in KINDS:
            some = [row for row in rows if row.op is op and kind(row.spec) == name]
            if some:
                groups[name + some[0].words] = some
    return groups


def ratios_picture(results: Results) -> str:
    """Each layer a dot, by kind: how many times as fast as its fastest rival."""
    rows = results.layers
    left, right, y = 12.0, WIDTH - 14.0, 62.0
    low = min([0.8, *(row.ratio() for row in rows)]) / 1.08
    high = max([2.0, *(row.ratio() for row in rows)]) * 1.08
    span = math.log(high / low)

    def across(ratio: float) -> float:
        return left + (right - left) * math.log(ratio / low) / span

    body: list[str] = []
    for name, group in by_kind(rows).items():
        lanes = []
        for threads in THREADS:
            some = sorted((row for row in group if row.threads == threads), key=Row.ratio)
            steps = _swarm([across(row.ratio()) for row in some], 6.2)
            if some:
                lanes.append((threads, some, steps))
        body.append(f'<path class="line" d="M0 {y:g}h{WIDTH}"/>')
        body.append(_text(left, y + 17, name, "bold"))
        y += 26
        for threads, some, steps in lanes:
            up, down = -min([0, *steps]), max([0, *steps])
            middle = y + 7 + 6 * up
            average = mean(row.ratio() for row in some) or 1.0
            for row, step in zip(some, steps, strict=True):
                said = f"{row.name}{row.words}, {COUNT[threads]}: {times(row.ratio())} {RIVALS[row.rival]}"
                body.append(_mark(threads, across(row.ratio()), middle + 6 * step, said))
            at = across(average)
            body.append(f'<path class="mean" d="M{at:.1f} {middle - 8:g}v16"/>')
            y = middle + 6 * down + 9
            body.append(f"<!-- {COUNT[threads]}: geometric mean {average:.3f} of {len(some)} -->")
        y += 6
    height = y + 30
    ticks = [t for t in (0.25, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50, 100) if low < t < high]
    grid = [f'<rect class="lost" x="0" y="62" width="{across(1):.1f}" height="{y - 62:g}"/>']
    for tick in ticks:
        x, look = across(tick), "even" if tick == 1 else "line"
        grid.append(f'<path class="{look}" d="M{x:.1f} 62V{y:g}"/>')
        grid.append(_text(x, y + 16, f"{tick:g}x", "middle"))
    head = [
        _text(left, 20, "Times as fast as the fastest rival", "bold"),
        _mark(1, left + 3, 36, COUNT[1]),
        _text(left + 11, 40, COUNT[1]),
        _mark(2, left + 98, 36, COUNT[2]),
        _text(left + 107, 40, COUNT[2]),
        f'<path class="mean" d="M{left + 204:g} 29v14"/>',
        _text(left + 211, 40, "geometric mean"),
        _text(across(1) + 5, 57, "faster →", "soft"),
        _text(across(1) - 5, 57, "← slower", "soft end") if across(1) > 64 else "",
    ]
    return _svg(height, "Every layer against its fastest rival", [*grid, *body, *head])


SHORT = {
    "prepared": "fastconv, prepared", "unprepared": "fastconv, unprepared", "highest": "fastconv, highest", **RIVALS
}  # fmt: skip


def networks_picture(results: Results) -> str:
    """Milliseconds of whole networks as bars."""
    body, y, left = [], 6.0, 142.0
    for name, words in NETWORK_WORDS.items():
        rows = sorted((row for row in results.networks if row.name == name), key=lambda row: row.threads)
        longest = max((t.median for row in rows for t in row.seconds.values()), default=1.0)
        for row in rows:
            body.append(_text(12, y + 17, f"{words}, {COUNT[row.threads]}", "bold"))
            y += 26
            for way, timing in row.seconds.items():
                width = (WIDTH - left - 62) * timing.median / longest
                look = ("one" if row.threads == 1 else "two") if way in OURS else "rival"
                body.append(_text(left - 6, y + 11, SHORT[way], "end"))
                body.append(
                    f'<rect class="{look}" x="{left:g}" y="{y:g}" width="{width:.1f}" height="14" rx="1"/>'
                )
                body.append(_text(left + width + 5, y + 11.5, _ms(timing.median)))
                y += 18
            y += 8
    return _svg(y + 4, "Time of whole networks", body)


# ---------------------------------------------------------------------------- the page


def _ms(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lines, ""]


def _folded(title: str, lines: Iterable[str]) -> list[str]:
    return ['<details markdown="1">', f"<summary>{title}</summary>", "", *lines, "</details>", ""]


# From a network and a batch to what is measured of it.
Problems = Callable[[str, int], list[tuple[Spec, Op]]]


def forward(network: str, batch: int) -> list[tuple[Spec, Op]]:
    """The layers of a network."""
    return forwards(layers(network, batch))


def backward(network: str, batch: int) -> list[tuple[Spec, Op]]:
    """The gradients of those networks' layers that are trained."""
    return gradients_of(network, batch)


def expected(problems: Problems) -> set[tuple[str, Op, int]]:
    """What a whole run measures."""
    found = {pair for batch in BATCHES for name in NETWORKS for pair in problems(name, batch)}
    return {(str(spec), op, threads) for spec, op in found for threads in THREADS}


def _incomplete(results: Results, problems: Problems) -> Iterator[str]:
    wanted = expected(problems)
    missing = len(wanted - {(row.name, row.op, row.threads) for row in results.layers})
    if missing:
        yield f"**This run is not complete: {missing} of {len(wanted)} measurements are missing.**"


def _summary(results: Results) -> Iterator[str]:
    rows = results.layers
    for threads in THREADS:
        some = [row for row in rows if row.threads == threads]
        convs = mean(row.ratio() for row in some if isinstance(row.spec, ConvSpec))
        pools = mean(row.ratio() for row in some if isinstance(row.spec, PoolSpec))
        said = [f"convolutions are {times(convs)}" if convs else "", f"pools {times(pools)}" if pools else ""]
        faster = sum(row.ratio() >= 1 for row in some)
        if some:
            yield (
                f"On {COUNT[threads]}, {' and '.join(filter(None, said))} as fast as the fastest of PyTorch NCHW, PyTorch "
                f"channels_last and ONNX Runtime on the same layer (geometric mean), and {faster} of {len(some)} layers "
                "are not slower."
            )
    yield from _incomplete(results, forward)


def _floor_table(found: Iterable[Floor]) -> list[str]:
    rows = [[floor.label, *("<br>".join(map(str, floor.parts[t])) for t in THREADS)] for floor in found]
    return [
        '<div class="floors" markdown="1">',
        "",
        *_table(["", *(COUNT[t] for t in THREADS)], rows),
        "</div>",
        "",
    ]


def _loss_table(rows: Iterable[Row], way: str) -> list[str]:
    found = sorted(
        (row for row in rows if way in row.seconds and row.ratio(way) < 1), key=lambda row: row.ratio(way)
    )
    lines = [
        (
            times(row.ratio(way)) + " ±" * row.is_noise(way), f"`{row.name}`{row.words}", str(row.threads), RIVALS[row.rival],
            row.algorithms.get(way, ""),
        )
        for row in found
    ]  # fmt: skip
    return (
        _table(("ratio", "layer", "threads", "fastest rival", "algorithm"), lines) if lines else ["None.", ""]
    )


def _losses(results: Results) -> Iterator[str]:
    rows = results.layers
    count = {way: sum(way in row.seconds and row.ratio(way) < 1 for row in rows) for way in OURS}
    total = {way: sum(way in row.seconds for row in rows) for way in OURS}
    yield (
        "Every layer that is slower than its fastest rival. ± marks those whose quartiles overlap with the rival's: "
        "noise could make the difference."
    )
    yield ""
    yield f"Convolutions, prepared: {count['prepared']} of {total['prepared']}."
    yield ""
    yield from _loss_table(rows, "prepared")
    yield f"Pools: {count['pool']} of {total['pool']}."
    yield ""
    yield from _loss_table(rows, "pool")
    for way, words in (
        ("unprepared", "Convolutions, unprepared"),
        ("highest", 'Convolutions, precision="highest"'),
    ):
        yield from _folded(f"{words}: {count[way]} of {total[way]}", _loss_table(rows, way))


def _machine(results: Results) -> list[str]:
    facts = results.machine
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    lines = [
        ("processor", f"{facts['cpu']}, {facts['cores']} cores, {facts['vectors']}"),
        ("versions", packages),
        ("engine", f"`{facts['engine']}` (a digest of its sources)"),
    ]
    for threads, rates in sorted(results.limits.items()):
        lines.append((f"multiply-adds, {COUNT[threads]}", f"{rates['flops'] / 1e9:.0f} GFLOP/s"))
        lines.append((f"copying, {COUNT[threads]}", f"{rates['bytes'] / 1e9:.1f} GB/s, read and written"))
    return _table(("", "measured on"), lines)


METHOD = """\
- **Answers first.** Each result, the rivals' too, is compared with a float64 reference before anything is timed. A batch
  of 16 repeats two images, so that every image is checked.
- **In turns.** All ways of computing a layer run in one process, each for about 3 ms, then each again, until there are at
  least five rounds; with two threads each turn waits until the threads of the one before are idle. What is shown is the
  median over the rounds; ± is half the distance between the quartiles.
- **Against the fastest.** A ratio is the time of the fastest of the three rivals on that layer over ours.
- **Weights.** Every convolution adds a bias. *Prepared* packs the weights ahead of the calls, as `fc.prepare_conv2d` does;
  *unprepared* is `fc.conv2d`; *highest* is prepared with `precision="highest"`, which leaves transforms out. ONNX Runtime
  holds its weights as constants and packs them ahead; PyTorch's channels-last input and weight are brought to that order
  before timing. Rivals are the same for all three of our ways.
- **Layers.** Every distinct convolution and pool of the seven networks in `fastconv/problems.py`, at batch 1 and 16,
  float32. *All layers* are the convolutions; each pool with a window counts as maximum, maximum with indices, and average.
- **Large direct layers** are convolutions with at least 64 channels in and out, at least 0.2 GFLOP and an image of at least
  14x14, with `precision="highest"`. Their limit is the rate of a loop of vector multiply-adds on registers, timed in turns
  with the layer, on as many threads.
- **Copy bandwidth** is `np.copyto` moving as many bytes, read and written together, as the pool reads and writes.
- **Whole networks**, batch 1. VGG16's 13 convolutions and 5 pools are chained: each reads what the one before gave, in the
  rival's own layout, without activations. ResNet-50's 53 convolutions run in order, each on an input of its own. *Grad-CAM*
  is `explore.grad_cam` of `nn.vgg16` with random weights on a photograph of 224x224, affine layers and all; PyTorch keeps
  nothing below the last convolution either.
"""


def _network_table(results: Results) -> list[str]:
    rows = []
    for row in sorted(results.networks, key=lambda row: (row.name != "vgg16", row.threads)):
        cells = [NETWORK_WORDS[row.name], str(row.threads)]
        cells += [_ms(row.seconds[way].median) if way in row.seconds else "-" for way in SHORT]
        rows.append(
            [
                *cells,
                *(
                    times(row.ratio(way)) if row.rival and way in row.seconds else "-"
                    for way in ("prepared", "unprepared", "highest")
                ),
            ]
        )
    return _table(["", "threads", *SHORT.values(), "ratio, prepared", "unprepared", "highest"], rows)


WAYS = {
    "prepared": "convolutions, prepared",
    "unprepared": "convolutions, unprepared",
    "pool": "pools",
}

# Choices that lose this much are shown one by one, so many of them at most.
LOST, WORST = 1.05, 12


def _choices(engine: Engine) -> Iterator[str]:
    found = engine.choices
    yield (
        "The algorithm is chosen by a cost model, from estimates. Here every algorithm of a layer is timed, in turns on one "
        "thread, but for those estimated at more than eight times the least, and for `implicit_gemm` beside `pointwise`, which "
        "is the same kernel. *Lost* is how much longer the chosen one takes than the fastest."
    )
    yield ""
    rows = []
    for way, words in WAYS.items():
        some = [choice for choice in found if choice.way == way]
        if some:
            right = sum(choice.regret() < LOST for choice in some)
            lost = engine.mean_regret(way) or 1.0
            rows.append(
                (words, str(len(some)), _lost(lost), _lost(max(c.regret() for c in some)), str(right))
            )
    yield from _table(("", "with a choice", "lost, geometric mean", "at worst", "lose less than 5 %"), rows)
    worst = sorted((c for c in found if c.regret() >= LOST), key=Choice.regret, reverse=True)[:WORST]
    if worst:
        yield f"The {len(worst)} worst, each with what was estimated and what was measured:"
        yield ""
        lines = [
            (_lost(c.regret()), f"`{c.name}`", c.way, _said(c, c.chosen), _said(c, c.best)) for c in worst
        ]
        yield from _table(("lost", "layer", "way", "chosen", "fastest"), lines)
    yield "Estimates against measured times, of all algorithms that were timed:"
    yield ""
    ratios: dict[str, list[float]] = {}
    for choice in found:
        for name, timing in choice.seconds.items():
            ratios.setdefault(name, []).append(timing.median / choice.estimates[name])
    yield from _table(
        ("algorithm", "timings", "measured / estimated, geometric mean", "least", "most"),
        (
            (f"`{name}`", str(len(some)), f"{mean(some):.2f}", f"{min(some):.2f}", f"{max(some):.2f}")
            for name, some in sorted(ratios.items())
        ),
    )
    yield f"Measured with engine `{engine.machine['engine']}`, {engine.machine['cpu']}, {engine.machine['vectors']}."
    yield ""


def _lost(regret: float) -> str:
    return f"{100 * (regret - 1):.1f} %"


def _said(choice: Choice, name: str) -> str:
    return f"{name}: {_ms(choice.estimates[name])}, {_ms(choice.seconds[name].median)}"


# What starting may take: all kernels compiled, and a first call beyond `import numba`.
STARTING = {
    "compile": ("all float32 kernels compiled, nothing on disk (`fastconv warm`, the whole process)", 30.0),
    "first call": ("first convolution in a new process, beyond `import numba`", 0.3),
    "three kinds": ("the same, then a convolution of 3 channels and a pool", 0.3),
}


def _starting(engine: Engine) -> Iterator[str]:
    rows = [
        (words, f"≤ {_ms(most)}", f"**{_ms(engine.start[name])}, {'met' if engine.start[name] <= most else 'short'}**")
        for name, (words, most) in STARTING.items()
    ]  # fmt: skip
    yield from _table(("", "floor", "measured"), rows)
    yield (
        f"The second and third are medians over new processes whose kernels lie on disk; `import numba` takes "
        f"{_ms(engine.start['import numba'])} there. They hold fastconv's own import, its threads and the first loading of the "
        "kernels."
    )
    yield ""


def _details(results: Results, problems: Problems, title: str = "{}") -> Iterator[str]:
    rows = {(row.name, row.op, row.threads): row for row in results.layers}
    tables = {"prepared": _conv_table, "pool": _pool_table, "gradient": _gradient_table}
    for network in NETWORKS:
        lines: list[str] = []
        for batch in BATCHES:
            for threads in THREADS:
                keys = [(str(spec), op, threads) for spec, op in problems(network, batch)]
                found = [rows[key] for key in keys if key in rows]
                if found:
                    lines += [f"Batch {batch}, {COUNT[threads]}", ""]
                for own, table in tables.items():
                    some = [row for row in found if row.own == own]
                    lines += table(some) if some else []
        if lines:
            yield from _folded(title.format(network), lines)


def _timed(row: Row, way: str) -> str:
    timing = row.seconds.get(way)
    return f"{_ms(timing.median)} ±{100 * timing.spread:.0f} %" if timing else "-"


def _conv_table(rows: Iterable[Row]) -> list[str]:
    lines = [
        [
            f"`{row.name}`", row.algorithms["prepared"],
            *(_timed(row, way) for way in ("prepared", "unprepared", "highest", *RIVALS)),
            *(times(row.ratio(way)) for way in ("prepared", "unprepared", "highest")), percent(row.share("highest")),
        ]
        for row in rows
    ]  # fmt: skip
    head = ["convolution", "algorithm", "prepared", "unprepared", "highest", *RIVALS.values()]
    return _table([*head, "ratio, prepared", "unprepared", "highest", "of peak, highest"], lines)


def _pool_table(rows: Iterable[Row]) -> list[str]:
    lines = [
        [
            f"`{row.name}`", row.algorithms["pool"], *(_timed(row, way) for way in ("pool", *RIVALS)), times(row.ratio()),
            percent(row.share()),
        ]
        for row in rows
    ]  # fmt: skip
    return _table(["pool", "algorithm", "fastconv", *RIVALS.values(), "ratio", "of copying"], lines)


def _gradient_table(rows: Iterable[Row]) -> list[str]:
    rivals = {name: words for name, words in RIVALS.items() if name in GRADIENTS}
    lines = [
        [
            f"`{row.name}`", OP_WORDS[row.op], row.algorithms["gradient"],
            *(_timed(row, way) for way in ("gradient", *rivals)), times(row.ratio()), percent(row.share()),
        ]
        for row in rows
    ]  # fmt: skip
    return _table(
        ["layer", "", "algorithm", "fastconv", *rivals.values(), "ratio", "of peak, or of copying"], lines
    )


def _refusals(results: Results) -> Iterator[str]:
    said = Counter((RIVALS[name], why) for row in results.layers for name, why in row.refused.items())
    errors: dict[str, float] = {}
    for row in results.layers:
        for way, error in row.errors.items():
            errors[way] = max(error, errors.get(way, 0.0))
    if errors:
        largest = ", ".join(f"{SHORT.get(way, 'pools')} {error:.1e}" for way, error in errors.items())
        yield f"Largest difference to float64 found, relative to the layer's largest result: {largest}."
        yield ""
    if said:
        yield "Rivals that a layer was not measured with, and how often:"
        yield ""
        yield from (f"- {name}: {why} ({count})" for (name, why), count in sorted(said.items()))
        yield ""


# ---------------------------------------------------------------------------- gradients and training

BACKWARD_METHOD = """\
- As forwards: answers first, in turns, medians over rounds, against the faster of PyTorch NCHW and channels_last on that
  layer (or the less in memory), and a batch of 16 repeats two images. Operands are whole numbers,
  whose sums float32 holds exactly; so every gradient must come out exactly, but for those by Winograd's transform, which
  are held to its bound, and averages, which are held to their roundings.
- **Ours** are calls of `fastconv.grad`'s functions, checks and all. **PyTorch's** are the operators that its autograd
  calls, called directly (`convolution_backward` for the one gradient, `max_pool2d_with_indices_backward`,
  `avg_pool2d_backward`, the quotient behind a global average), with operands brought to NCHW or channels_last before
  timing: its graph and its Python are not counted.
- **Layers** are every distinct convolution of VGG16, ResNet-50, AlexNet, LeNet-5 and MobileNetV1, at batch 1 and 16, and
  their pools: each with a window as maximum and as average, and the global ones. A max pool's gradient is formed from
  the indices that its forward pass has returned, in PyTorch and here.
- **A training step** is a forward pass, softmax cross-entropy, a backward pass without the gradient of the images, and SGD,
  on a batch of 100 images of 28x28, with the same weights and images in both: `fastconv.nn.train_step` beside the same
  network of `torch.nn` and `torch.optim.SGD`. Gradients of the first step are compared with float64.
- **Peak memory** is the most that was allocated at a time during two steps in a row, above network and images, in a process
  of its own, by memray, the second largest of several measurements: the same for both.
"""


def _backward_summary(results: Results) -> Iterator[str]:
    for threads in THREADS:
        some = [row for row in results.layers if row.threads == threads]
        means = {op: mean(row.ratio() for row in some if row.op is op) for op in OP_WORDS}
        words = ("input gradients of convolutions", "weight gradients", "gradients of pools")
        said = [
            f"{what} are {times(found)}" for what, found in zip(words, means.values(), strict=True) if found
        ]
        faster = sum(row.ratio() >= 1 for row in some)
        if some:
            yield (
                f"On {COUNT[threads]}, {', '.join(said)} as fast as the faster of PyTorch NCHW and PyTorch channels_last "
                f"(geometric mean), and {faster} of {len(some)} gradients are not slower."
            )
    yield from _incomplete(results, backward)


def _step_table(results: Results) -> list[str]:
    ways = {"step": "fastconv", **{name: RIVALS[name] for name in GRADIENTS}}
    lines = [
        [
            NETWORK_WORDS[row.name], str(row.threads), *(_timed(row, way) for way in ways), times(row.ratio()) if row.rival else "-",
            *(f"{row.peaks[way] / 1e6:.3g} MB" if way in row.peaks else "-" for way in ways),
        ]
        for row in results.networks
    ]  # fmt: skip
    return _table(
        ["a step", "threads", *ways.values(), "ratio", *(f"peak, {words}" for words in ways.values())], lines
    )


def _backward_section(results: Results) -> list[str]:
    rows = results.layers
    lost = sum(row.ratio() < 1 for row in rows)
    return [
        "## Gradients and training",
        "",
        *(line for sentence in _backward_summary(results) for line in (sentence, "")),
        f"![Every gradient as a dot: how many times as fast as PyTorch's]({GRADIENT_RATIOS}){{ .chart }}",
        "",
        *_floor_table(gradient_floors(results)),
        "Training steps, and the memory they take:",
        "",
        *_step_table(results),
        *_folded(f"Every gradient that is slower: {lost} of {len(rows)}", _loss_table(rows, "gradient")),
        BACKWARD_METHOD,
        f"Measured with engine `{results.machine['engine']}`, {results.machine['cpu']}, {results.machine['vectors']}.",
        "",
        *_details(results, backward, "{}, gradients"),
    ]


# ---------------------------------------------------------------------------- all of it


def _elsewhere(folder: str, forwards: Results, backwards: Results) -> list[str]:
    """The floors on another machine."""
    facts = forwards.machine
    return [
        f"## The floors on another machine: {folder}",
        "",
        f"{facts['cpu']}, {facts['cores']} cores, {facts['vectors']}, with engine `{facts['engine']}`; "
        f"every number is in `benchmarks/elsewhere/{folder}`.",
        "",
        *_floor_table([*floors(forwards), *gradient_floors(backwards)]),
    ]


# Results and gradients of other machines, by the folder they are kept in.
Elsewhere = Mapping[str, tuple[Results, Results]]


def markdown(
    results: Results, engine: Engine, trained: Results | None = None, elsewhere: Elsewhere | None = None
) -> str:
    """The page, with gradients and training where they have been measured."""
    lines = [
        "<!-- made from the JSON files in benchmarks/ by `python -m benchmarks.rivals --page` -->",
        "",
        "# Performance",
        "",
        *(line for sentence in _summary(results) for line in (sentence, "")),
        f"![Every layer of seven networks as a dot: how many times as fast as its fastest rival]({RATIOS}){{ .chart }}",
        "",
        "## Floors",
        "",
        "What the CPU engine is to reach, and what it does.",
        "",
        *_floor_table(floors(results)),
        "## Where it loses",
        "",
        *_losses(results),
        "## Whole networks",
        "",
        f"![Time of VGG16's convolutions and pools, and of ResNet-50's convolutions]({NETWORK_TIMES}){{ .chart }}",
        "",
        *_folded("The same as a table", _network_table(results)),
        *(_backward_section(trained) if trained else ()),
        "## Starting",
        "",
        *_starting(engine),
        "## How good the choices are",
        "",
        *_choices(engine),
        "## The machine",
        "",
        *_machine(results),
        *(line for folder, both in (elsewhere or {}).items() for line in _elsewhere(folder, *both)),
        "## How it was measured",
        "",
        METHOD,
        *_refusals(results),
        "## Every layer",
        "",
        *_details(results, forward),
        "## To repeat it",
        "",
        "```sh",
        "python -m benchmarks.rivals              # about 12 minutes; --network, --batch and --threads measure a part",
        "python -m benchmarks.rivals --gradients  # gradients and training steps, about 8 minutes",
        "python -m benchmarks.engine              # starting, and the choices: about 3 minutes",
        "python -m benchmarks.rivals --page       # this page",
        "```",
    ]
    return "\n".join(lines).rstrip() + "\n"


def pages(
    results: Results, engine: Engine, trained: Results | None = None, elsewhere: Elsewhere | None = None
) -> dict[str, str]:
    """Every file of the page: its name under docs/, and its text."""
    pictures = {RATIOS: ratios_picture(results), NETWORK_TIMES: networks_picture(results)}
    if trained:
        pictures[GRADIENT_RATIOS] = ratios_picture(trained)
    return {PAGE: markdown(results, engine, trained, elsewhere), **pictures}


def write(made: Mapping[str, str], docs: Path) -> list[Path]:
    """Write page and pictures into the folder `docs`; return their paths."""
    written = []
    for name, text in made.items():
        written.append(docs / name)
        written[-1].write_text(text, encoding="utf-8")
    return written
