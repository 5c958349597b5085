"""What ``benchmarks.rivals`` has measured, as it lies in the JSON file, and the floors it is held against."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fastconv.spec import ConvSpec, Op, PoolSpec, Spec, parse

FORMAT = 1
BATCHES, THREADS = (1, 16), (1, 2)
OURS = ("prepared", "unprepared", "highest", "pool", "gradient", "step")
RIVALS = {
    "torch": "PyTorch NCHW",
    "torch channels_last": "PyTorch channels_last",
    "onnxruntime": "ONNX Runtime",
}
COUNT = {1: "one thread", 2: "two threads"}
OP_WORDS = {
    Op.CONV_INPUT_GRAD: "input gradient",
    Op.CONV_WEIGHT_GRAD: "weight gradient",
    Op.POOL_INPUT_GRAD: "gradient",
}
NETWORK_WORDS = {
    "vgg16": "VGG16: convolutions and pools, chained",
    "resnet50": "ResNet-50: its 53 convolutions",
    "looking": "VGG16 and Grad-CAM of a photograph",
    "simple": "SimpleConvNet",
    "lenet": "LeNet-5",
}


# ---------------------------------------------------------------------------- results


class Timing(NamedTuple):
    """Lower quartile, median and upper quartile, in seconds."""

    low: float
    median: float
    high: float

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a part of the median."""
        return (self.high - self.low) / 2 / self.median


@dataclass(frozen=True)
class Row:
    """Something measured on some threads: a layer (`spec`, and `op`) or a whole network (`name`)."""

    name: str
    threads: int
    seconds: dict[str, Timing]
    gradient: str = ""
    algorithms: dict[str, str] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)

    @property
    def op(self) -> Op:
        """What was measured of the layer: the forward op, or a gradient."""
        return Op(self.gradient) if self.gradient else self.spec.ops[0]

    @property
    def words(self) -> str:
        """What to say after the name: which gradient it is."""
        return f", {OP_WORDS[self.op]}" if self.gradient else ""

    @property
    def spec(self) -> Spec:
        """The layer's problem."""
        return parse(self.name)

    @property
    def own(self) -> str:
        """The way that a layer's first number is about."""
        ways = ("pool", "gradient", "step", "prepared", "unprepared")
        return next(way for way in ways if way in self.seconds)

    @property
    def rival(self) -> str:
        """The fastest rival; empty if none takes part."""
        return min((n for n in RIVALS if n in self.seconds), key=lambda n: self.seconds[n].median, default="")

    def ratio(self, way: str = "") -> float:
        """How many times as fast as the fastest rival one of our ways is."""
        return self.seconds[self.rival].median / self.seconds[way or self.own].median

    def share(self, way: str = "") -> float:
        """The part of the machine's limit (multiply-adds, or copied bytes) that one of our ways reaches."""
        return self.seconds["limit"].median / self.seconds[way or self.own].median

    def lightness(self) -> float:
        """How many times our peak memory the least of the rivals' is."""
        return min(self.peaks[name] for name in RIVALS if name in self.peaks) / self.peaks[self.own]

    def is_noise(self, way: str = "") -> bool:
        """Whether the quartiles of ours and the rival's overlap."""
        mine, other = self.seconds[way or self.own], self.seconds[self.rival]
        return mine.low <= other.high and other.low <= mine.high


class Results:
    """What a file holds: the machine, and one record for each layer or network and number of threads."""

    def __init__(self, machine: dict[str, Any]) -> None:
        self.machine = machine
        self.limits: dict[int, dict[str, float]] = {}
        self._layers: dict[tuple[str, str, int], dict[str, Any]] = {}
        self._networks: dict[tuple[str, int], dict[str, Any]] = {}

    def set_limits(self, threads: int, rates: dict[str, float]) -> None:
        """Keep the best rates that were ever seen: they are limits."""
        before = self.limits.get(threads, {})
        self.limits[threads] = {name: max(rate, before.get(name, 0.0)) for name, rate in rates.items()}

    def set_record(self, record: dict[str, Any]) -> None:
        """Add a layer's or a network's record, or put it in the place of an earlier one."""
        if "network" in record:
            self._networks[record["network"], record["threads"]] = record
        else:
            self._layers[record["problem"], record.get("op", ""), record["threads"]] = record

    @property
    def layers(self) -> list[Row]:
        """Every layer's row that a rival took part in, in the order of their names."""
        rows = [_row(record["problem"], record) for _, record in sorted(self._layers.items())]
        return [row for row in rows if row.rival]

    @property
    def networks(self) -> list[Row]:
        """Every whole network's row."""
        return [_row(record["network"], record) for _, record in sorted(self._networks.items())]

    def as_json(self) -> str:
        """JSON with one record a line, in the order of their names."""
        lines = [f'{{"format": {FORMAT},', f'"machine": {json.dumps(self.machine)},']
        lines.append(f'"limits": {json.dumps(dict(sorted(self.limits.items())))},')
        tables: dict[str, dict[Any, dict[str, Any]]] = {"layers": self._layers, "networks": self._networks}
        for name, table in tables.items():
            records = ",\n".join(json.dumps(table[key], separators=(",", ":")) for key in sorted(table))
            lines.append(f'"{name}": [\n{records}\n]' + ("," if name == "layers" else "}"))
        return "\n".join(lines) + "\n"


def _row(name: str, record: dict[str, Any]) -> Row:
    seconds = {way: Timing(*values) for way, values in record["seconds"].items()}
    parts = {key: record.get(key, {}) for key in ("algorithms", "errors", "refused", "peaks")}
    return Row(name, record["threads"], seconds, record.get("op", ""), **parts)


def read(path: Path) -> Results:
    """Results from the file that a run wrote.

    Raises
    ------
    ValueError
        If it is of another format.
    """
    data = json.loads(path.read_text(encoding="utf-8"))
    if data["format"] != FORMAT:
        raise ValueError(f"{path.name}: got format {data['format']}, expected {FORMAT}; measure anew")
    results = Results(data["machine"])
    for threads, rates in data["limits"].items():
        results.set_limits(int(threads), rates)
    for record in (*data["layers"], *data["networks"]):
        results.set_record(record)
    return results


# ---------------------------------------------------------------------------- the engine by itself


class Choice(NamedTuple):
    """A layer that several algorithms compute, called in one way: what each was estimated at, and took."""

    name: str
    way: str
    estimates: dict[str, float]
    seconds: dict[str, Timing]

    @property
    def spec(self) -> Spec:
        """The layer's problem."""
        return parse(self.name)

    @property
    def chosen(self) -> str:
        """The algorithm with the least estimate."""
        return min(self.estimates, key=self.estimates.__getitem__)

    @property
    def best(self) -> str:
        """The algorithm with the least measured time."""
        return min(self.seconds, key=lambda name: self.seconds[name].median)

    def regret(self, chosen: str = "") -> float:
        """How many times as long as the best an algorithm takes."""
        return self.seconds[chosen or self.chosen].median / self.seconds[self.best].median


class Engine:
    """What ``benchmarks.engine`` has measured: how long starting takes, and one record for each choice."""

    def __init__(
        self, machine: dict[str, Any], start: dict[str, float], records: list[dict[str, Any]]
    ) -> None:
        self.machine = machine
        self.start = start
        self._records = records

    @property
    def choices(self) -> list[Choice]:
        """Every layer and way that leaves a choice."""
        return [
            Choice(
                record["problem"],
                record["way"],
                record["estimates"],
                {name: Timing(*values) for name, values in record["seconds"].items()},
            )
            for record in self._records
        ]

    def mean_regret(self, way: str = "") -> float | None:
        """The geometric mean over all choices, or those of one way."""
        return mean(choice.regret() for choice in self.choices if way in ("", choice.way))

    def as_json(self) -> str:
        """JSON with one record a line."""
        records = ",\n".join(json.dumps(record, separators=(",", ":")) for record in self._records)
        return (
            f'{{"format": {FORMAT},\n"machine": {json.dumps(self.machine)},\n"start": {json.dumps(self.start)},\n'
            f'"choices": [\n{records}\n]}}\n'
        )


def read_engine(path: Path) -> Engine:
    """What a run of ``benchmarks.engine`` wrote."""
    data = json.loads(path.read_text(encoding="utf-8"))
    return Engine(data["machine"], data["start"], data["choices"])


# ---------------------------------------------------------------------------- kinds of layers


def kind(spec: Spec) -> str:
    """The group a layer is shown in."""
    if isinstance(spec, PoolSpec):
        if spec.mode == "max":
            return "max pools with indices" if spec.indices else "max pools"
        return "average pools"
    if spec.groups > 1:
        return "depthwise"
    if is_wide_3x3(spec):
        return "3x3, ≥ 64 channels"
    largest = max(spec.kernel_size)
    return "1x1" if largest == 1 else "other 3x3" if largest == 3 else "5x5 and larger"


KINDS = (
    "3x3, ≥ 64 channels", "other 3x3", "1x1", "5x5 and larger", "depthwise",
    "max pools", "max pools with indices", "average pools",
)  # fmt: skip


def is_wide_3x3(spec: Spec) -> bool:
    """A dense 3x3 convolution at stride 1 from and to at least 64 channels."""
    return (
        isinstance(spec, ConvSpec)
        and (set(spec.kernel_size), set(spec.stride), set(spec.dilation)) == ({3}, {1}, {1})
        and spec.groups == 1
        and min(spec.in_channels, spec.out_channels) >= 64
    )


def is_large(spec: Spec) -> bool:
    """A dense convolution that has enough to do for its rate to be that of its arithmetic."""
    return (
        isinstance(spec, ConvSpec)
        and spec.groups == 1
        and min(spec.in_channels, spec.out_channels) >= 64
        and spec.flops() >= 0.2e9
        and min(spec.in_size) >= 14
    )


# ---------------------------------------------------------------------------- floors


def times(ratio: float) -> str:
    """A ratio as it is shown: rounded down, so that what is short never looks met."""
    return f"{math.floor(ratio * 100 + 1e-9) / 100:.2f}x"


def percent(share: float) -> str:
    """A share as it is shown, rounded down."""
    return f"{math.floor(share * 1000 + 1e-9) / 10:.1f} %"


class Part(NamedTuple):
    """One floor: what it is about, the number it asks for, the number measured (None: nothing was)."""

    about: str
    floor: float
    value: float | None
    unit: str = "x"
    remark: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the number is as large as it must be; None if there is none."""
        return None if self.value is None else self.value >= self.floor

    def __str__(self) -> str:
        asked = f"≥ {self.floor * 100:g} %" if self.unit == "%" else f"≥ {self.floor:g}x"
        if self.value is None:
            return f"{asked} {self.about}: not measured"
        shown = percent if self.unit == "%" else times
        verdict = "met" if self.met else "short"
        remark = f" ({self.remark})" if self.remark else ""
        return f"{asked} {self.about}: **{shown(self.value)}, {verdict}**{remark}"


class Floor(NamedTuple):
    """A row of the table: a label, and its parts for each number of threads."""

    label: str
    parts: dict[int, list[Part]]


def mean(values: Iterable[float]) -> float | None:
    """The geometric mean; None of nothing."""
    found = list(values)
    return statistics.geometric_mean(found) if found else None


def floors(results: Results) -> list[Floor]:
    """What the engine is to reach, and what it does."""
    rows, networks = results.layers, results.networks
    convs = {t: [r for r in rows if r.threads == t and isinstance(r.spec, ConvSpec)] for t in THREADS}
    pools = {t: [r for r in rows if r.threads == t and isinstance(r.spec, PoolSpec)] for t in THREADS}
    wide = {t: [r for r in convs[t] if is_wide_3x3(r.spec)] for t in THREADS}
    large = {t: [r for r in convs[t] if is_large(r.spec)] for t in THREADS}
    stack = {t: [r for r in networks if r.threads == t and r.name == "vgg16" and r.rival] for t in THREADS}

    def ways(of: list[Row], prepared: float, unprepared: float) -> list[Part]:
        return [
            Part("the fastest rival, prepared", prepared, mean(r.ratio("prepared") for r in of)),
            Part("unprepared", unprepared, mean(r.ratio("unprepared") for r in of)),
        ]

    def worst(of: list[Row], floor: float) -> list[Part]:
        row = min(of, key=Row.ratio, default=None)
        return [Part("prepared", floor, row.ratio() if row else None, remark=f"`{row.name}`" if row else "")]

    def highest(of: list[Row], floor: float) -> list[Part]:
        least = min((r.ratio("highest") for r in of), default=0.0)
        return [
            Part(
                "the fastest rival",
                floor,
                mean(r.ratio("highest") for r in of),
                remark=f"worst {times(least)}",
            )
        ]

    def peak(of: list[Row], floor: float) -> list[Part]:
        least = min((r.share("highest") for r in of), default=0.0)
        value = mean(r.share("highest") for r in of)
        return [Part("of the peak", floor, value, "%", f"{len(of)} layers, worst {percent(least)}")]

    def pooling(of: list[Row], floor: float, copied: float | None) -> list[Part]:
        made = []
        for name in KINDS[-3:]:
            some = [r for r in of if kind(r.spec) == name]
            made.append(Part(f"the fastest rival, {name}", floor, mean(r.ratio() for r in some)))
            if copied is not None:
                made.append(Part(f"of copy bandwidth, {name}", copied, mean(r.share() for r in some), "%"))
        return made

    def end_to_end(of: list[Row], floor: float) -> list[Part]:
        return [Part("the fastest rival, prepared", floor, of[0].ratio() if of else None)]

    def seen(threads: int) -> list[Part]:
        found = [r.ratio() for r in networks if (r.name, r.threads) == ("looking", threads) and r.rival]
        return [Part("PyTorch", 1.5, found[0] if found else None)]

    return [
        Floor(
            "3x3 stride-1 layers with ≥ 64 channels, geometric mean",
            {t: ways(wide[t], 1.7, 1.5) for t in THREADS},
        ),
        Floor("all layers, geometric mean", {t: ways(convs[t], 1.4, 1.25) for t in THREADS}),
        Floor("the worst layer", {t: worst(convs[t], {1: 0.85, 2: 0.8}[t]) for t in THREADS}),
        Floor(
            '`precision="highest"`, all layers, geometric mean',
            {t: highest(convs[t], {1: 0.95, 2: 0.9}[t]) for t in THREADS},
        ),
        Floor(
            "large direct layers, share of the measured FMA peak",
            {t: peak(large[t], {1: 0.9, 2: 0.85}[t]) for t in THREADS},
        ),
        Floor(
            "pooling (max with and without indices, average)",
            {1: pooling(pools[1], 1.5, 0.7), 2: pooling(pools[2], 1.3, None)},
        ),
        Floor("VGG16 stack, end to end", {t: end_to_end(stack[t], 1.7) for t in THREADS}),
        Floor("VGG16 forward and Grad-CAM of one photograph", {t: seen(t) for t in THREADS}),
    ]


def is_3x3(spec: Spec) -> bool:
    """A 3x3 convolution at stride 1."""
    return isinstance(spec, ConvSpec) and (set(spec.kernel_size), set(spec.stride)) == ({3}, {1})


def gradient_floors(results: Results) -> list[Floor]:
    """What gradients and training are to reach, and what they do."""
    rows, steps = results.layers, results.networks
    fastest = "PyTorch"

    def geometric(floor: float, about: str, of: Iterable[Row]) -> dict[int, Part]:
        parts = {}
        for t in THREADS:
            ratios = [row.ratio() for row in of if row.threads == t]
            remark = f"{len(ratios)} layers, worst {times(min(ratios))}" if ratios else ""
            parts[t] = Part(about, floor, mean(ratios), remark=remark)
        return parts

    def worst(floor: float, of: Iterable[Row]) -> dict[int, Part]:
        parts = {}
        for t in THREADS:
            row = min((row for row in of if row.threads == t), key=Row.ratio, default=None)
            remark = f"`{row.name}`{row.words}" if row else ""
            parts[t] = Part(fastest, floor, row.ratio() if row else None, remark=remark)
        return parts

    def step(network: str) -> dict[int, Part]:
        found = {row.threads: row.ratio() for row in steps if row.name == network and row.rival}
        return {t: Part(f"{fastest}, {NETWORK_WORDS[network]}", 1.5, found.get(t)) for t in THREADS}

    def memory(network: str) -> dict[int, Part]:
        found = {row.threads: row for row in steps if row.name == network and row.rival}
        parts = {}
        for t in THREADS:
            row = found.get(t)
            remark = f"ours {row.peaks[row.own] / 1e6:.3g} MB" if row else ""
            about = f"PyTorch's peak over ours, {NETWORK_WORDS[network]}"
            parts[t] = Part(about, 1.0, row.lightness() if row else None, remark=remark)
        return parts

    def floor(label: str, *some: dict[int, Part]) -> Floor:
        return Floor(label, {t: [parts[t] for parts in some] for t in THREADS})

    inputs = [row for row in rows if row.op is Op.CONV_INPUT_GRAD]
    weights = [row for row in rows if row.op is Op.CONV_WEIGHT_GRAD]
    pools = [row for row in rows if row.op is Op.POOL_INPUT_GRAD]
    small = [row for row in inputs if is_3x3(row.spec)]
    by_kind = {name: [row for row in pools if kind(row.spec) == name] for name in KINDS[-2:]}
    return [
        floor("input gradients of convolutions, geometric mean", geometric(1.5, fastest, inputs)),
        floor(
            "those of 3x3 convolutions at stride 1",
            geometric(1.7, f"{fastest}, dense", [row for row in small if kind(row.spec) != "depthwise"]),
            geometric(1.7, f"{fastest}, depthwise", [row for row in small if kind(row.spec) == "depthwise"]),
        ),
        floor("weight gradients, geometric mean", geometric(1.4, fastest, weights)),
        floor("the worst gradient of a convolution", worst(0.8, [*inputs, *weights])),
        floor(
            "gradients of pools, geometric mean",
            *(geometric(1.5, f"{fastest}, {name}", some) for name, some in by_kind.items()),
        ),
        floor("a training step, batch 100, 28x28", step("simple"), step("lenet")),
        floor("peak memory of a training step", memory("simple"), memory("lenet")),
    ]
