"""From measurements to words, tables and charts: terminal, Markdown, and one HTML page that works offline."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from fastconv.compare import Comparison, Row, Slower

# Okabe and Ito's palette, and Tol's for numba and cupy, told apart by colour-blind readers; one for each way of computing.
COLOURS = {
    "naive/loops": "#999999",
    "im2col/im2col": "#0072B2",
    "im2col/col2im": "#0072B2",
    "im2col/pointwise": "#56B4E9",
    "im2col/fft": "#E69F00",
    "im2col/taps": "#009E73",
    "im2col/cells": "#CC79A7",
    "numba/winograd": "#D55E00",
    "numba/implicit_gemm": "#882255",
    "numba/direct": "#88CCEE",
    "numba/pointwise": "#332288",
    "numba/depthwise": "#117733",
    "numba/fft": "#DDAA33",
    "numba/rows": "#44AA99",
    "numba/taps": "#AA4499",
    "numba/cells": "#661100",
    "cupy/implicit_gemm_mma": "#BB5566",
    "cupy/implicit_gemm": "#004488",
    "cupy/depthwise": "#999933",
    "cupy/im2col": "#EE8866",
    "cupy/cudnn": "#44BB99",
    "cupy/windows": "#EEDD88",
}
OTHER_COLOURS = ("#D55E00", "#F0E442", "#CC79A7", "#009E73", "#E69F00", "#56B4E9", "#0072B2")


def way(row: Row) -> str:
    """Backend and algorithm in a word."""
    return f"{row.backend}/{row.algorithm}"


def colour(name: str) -> str:
    """The colour of one way of computing, the same in every chart."""
    return COLOURS.get(name) or OTHER_COLOURS[sum(name.encode()) % len(OTHER_COLOURS)]


# ---------------------------------------------------------------------------- numbers for people


def seconds(value: float) -> str:
    """A time with three digits and a fitting unit."""
    for unit, factor in (("µs", 1e6), ("ms", 1e3)):
        if value * factor < 1000:
            return f"{value * factor:.3g} {unit}"
    return f"{value:.3g} s" if value < 120 else f"{value / 60:.3g} min"


def size(value: float | None) -> str:
    """Bytes with three digits and a fitting unit (powers of 1000)."""
    if value is None:
        return "-"
    for unit, factor in (("B", 1.0), ("kB", 1e3), ("MB", 1e6)):
        if value < 1000 * factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value / 1e9:.3g} GB"


def times(value: float | None) -> str:
    """A ratio with two or three digits; small ones as fractions."""
    if value is None:
        return "-"
    if value < 0.01:
        return f"1/{float(f'{1 / value:.2g}'):,.0f}"
    return f"{value:,.0f}x" if value >= 100 else f"{value:.3g}x"


def share(value: float) -> str:
    """A part of a whole in per cent."""
    percent = 100 * value
    return "<0.01 %" if percent < 0.01 else f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"


def _label(row: Row, run: Comparison) -> str:
    several = len({other.op for other in run.rows if other.case == row.case}) > 1
    return f"{row.case}, {row.op}" if several else row.case


def baselines(run: Comparison) -> dict[tuple[str, str], dict[str, float]]:
    """For every problem and op the seconds of `naive`, and of `im2col` by its own choice."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in run.rows:
        if row.chosen and row.backend in ("naive", "im2col"):
            found.setdefault((row.problem, row.op), {})[row.backend] = row.seconds
    return found


def against(row: Row, base: dict[tuple[str, str], dict[str, float]], name: str) -> float | None:
    """How many times faster a row is than backend `name` on the same problem."""
    before = base.get((row.problem, row.op), {}).get(name)
    return before / row.seconds if before and row.seconds else None


COLUMNS = (
    "problem", "backend", "algorithm", "median", "spread", "GFLOP/s", "of peak", "vs naive", "vs im2col",
    "peak memory", "predicted", "error", "first call",
)  # fmt: skip


def cells(row: Row, run: Comparison, base: dict[tuple[str, str], dict[str, float]]) -> list[str]:
    """One row of the table, as text."""
    mark = "~" if row.timed else ""
    return [
        _label(row, run),
        row.backend,
        row.algorithm + (" *" if row.chosen and row.backend != "naive" else ""),
        mark + seconds(row.seconds),
        f"±{50 * (row.high - row.low) / row.seconds:.0f} %" if row.seconds else "-",
        f"{row.rate / 1e9:.3g}",
        share(row.rate / run.machine.peak),
        times(against(row, base, "naive")),
        times(against(row, base, "im2col")),
        mark + size(row.peak),
        "-" if row.backend == "naive" else size(row.predicted),
        ("-" if row.error is None else f"{row.error:.1e}") + ("" if row.agrees else " WRONG"),
        seconds(row.first_call),
    ]


NOTES = (
    "* the algorithm the cost model chooses.",
    "~ timed (and memory measured) on a smaller problem of the same kind, time scaled by the number of operations.",
    "Spread: half the distance between the quartiles. Error: largest difference to float64 over the largest result.",
)


# What a terminal of 80 columns has room for.
NARROW = ("problem", "algorithm", "median", "GFLOP/s", "vs naive", "peak memory", "error")


def terminal(run: Comparison, width: int) -> Table:
    """The table for a terminal of `width` columns: all of it, or the columns that fit a narrow one."""
    shown = COLUMNS if width >= 150 else NARROW
    table = Table(title=headline(run), caption="\n".join(NOTES), title_justify="left", caption_justify="left")
    base = baselines(run)
    for name in shown:
        table.add_column(name, justify="left" if name in COLUMNS[:3] else "right", no_wrap=name != "problem")
    last = None
    for row in run.rows:
        if last is not None and (row.case, row.op) != last:
            table.add_section()
        last = (row.case, row.op)
        texts = dict(zip(COLUMNS, cells(row, run, base), strict=True))
        if shown is NARROW:
            texts["algorithm"] = f"{row.backend}/{texts['algorithm']}"
        table.add_row(*(texts[name] for name in shown), style="" if row.agrees else "bold red")
    return table


def short_markdown(run: Comparison) -> list[str]:
    """One line for each problem: what the cost model chose, for the best backend."""
    base = baselines(run)
    lines = ["| problem | runs as | time | vs plain loops | peak memory | textbook columns | error |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    seen = set()
    for row in run.rows:
        key = (row.problem, row.op)
        if row.chosen and row.backend != "naive" and key not in seen:
            seen.add(key)
            columns = size(row.columns) if row.columns else "-"
            texts = [
                _label(row, run),
                way(row),
                seconds(row.seconds),
                times(against(row, base, "naive")),
                size(row.peak),
            ]
            lines.append(
                "| " + " | ".join([*texts, columns, "-" if row.error is None else f"{row.error:.0e}"]) + " |"
            )
    return lines


def markdown(run: Comparison) -> str:
    """Summary, a short and the whole table, and the machine as Markdown."""
    base = baselines(run)
    lines = [f"# {headline(run)}", "", *(f"- {sentence}" for sentence in summary(run)), ""]
    lines += [*short_markdown(run), ""]
    lines += [
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "|".join([" --- "] * 3 + [" ---: "] * (len(COLUMNS) - 3)) + "|",
    ]
    lines += ["| " + " | ".join(cells(row, run, base)).replace("*", "\\*") + " |" for row in run.rows]
    lines += ["", *(f"{note}  ".replace("* the", "\\* the") for note in NOTES), ""]
    lines += [f"- {name}: {value}" for name, value in facts(run)]
    return "\n".join(lines) + "\n"


def slower_table(found: Sequence[Slower], by: float) -> Table:
    """What became slower than in an earlier run."""
    table = Table(title=f"Slower than before by more than {by:.0%}", title_justify="left")
    for name in ("problem", "op", "way", "before", "now", "ratio"):
        table.add_column(name)
    for pair in found:
        row = pair.row
        table.add_row(
            row.problem,
            row.op,
            way(row),
            seconds(pair.before.seconds),
            seconds(row.seconds),
            f"{pair.ratio:.2f}x",
        )
    return table


# ---------------------------------------------------------------------------- words


def headline(run: Comparison) -> str:
    """What this is, in a line."""
    stopped = " (interrupted)" if run.interrupted else ""
    return f"fastconv compare: {run.workload}{stopped}"


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


# Below this a plan's buffers, NumPy's among them, are counted whole and used in part.
BUFFERS = 64_000


def _predictions(run: Comparison) -> list[str]:
    """How far measured peaks are from predicted ones: a share of large ones, bytes of small ones."""
    pairs = [(row.peak or 0, row.predicted or 0) for row in run.rows if row.backend != "naive"]
    far = [abs(peak / predicted - 1) for peak, predicted in pairs if peak and predicted >= BUFFERS]
    near = [abs(peak - predicted) for peak, predicted in pairs if 0 < predicted < BUFFERS]
    said = []
    if far:
        said.append(f"Measured peak memory is within {share(max(far))} of what the plans predict.")
    if near:
        said.append(f"Predictions below {size(BUFFERS)} hold within {size(max(near))}.")
    return said


def summary(run: Comparison) -> list[str]:
    """The findings in sentences, most important first."""
    base = baselines(run)
    said = []
    wrong = [row for row in run.rows if not row.agrees]
    if run.checked:
        bad = len(run.disagreements)
        said.append(
            f"All {run.checked} comparisons with the definition agree, and so does every result below with float64."
            if run.ok
            else f"{bad} of {run.checked} comparisons with the definition and {len(wrong)} of {len(run.rows)} "
            "full-size results disagree."
        )
    best: dict[tuple[str, str], Row] = {}
    for row in run.rows:
        key = (row.problem, row.op)
        if key not in best or row.seconds < best[key].seconds:
            best[key] = row
    gains = {
        key: gain
        for key, row in best.items()
        if (gain := against(row, base, "naive")) and row.backend != "naive"
    }
    if gains:
        most = best[max(gains, key=lambda key: gains[key])]
        said.append(
            f"Against plain Python loops the fastest way is {times(_geometric_mean(list(gains.values())))} as fast "
            f"(geometric mean of {len(gains)} problems), and {times(max(gains.values()))} on {_label(most, run)}."
        )
    fastest = max((row for row in best.values() if row.columns), key=lambda row: row.rate, default=None)
    if fastest is not None:
        said.append(
            f"The highest rate is {fastest.rate / 1e9:.3g} GFLOP/s, on {_label(fastest, run)} with {way(fastest)}: "
            f"{share(fastest.rate / run.machine.peak)} of what a large matrix product reaches on this machine."
            + (
                " A transform needs fewer operations than are counted."
                if fastest.algorithm in ("fft", "winograd")
                else ""
            )
        )
    missed = [
        (row, chosen)
        for row in best.values()
        for chosen in run.rows
        if chosen.chosen and chosen.backend == row.backend and (chosen.problem, chosen.op) == (row.problem, row.op)
        and chosen.algorithm != row.algorithm
    ]  # fmt: skip
    for row, chosen in missed:
        said.append(
            f"On {_label(row, run)} {way(row)} was {times(chosen.seconds / row.seconds)} as fast as {way(chosen)}, "
            "which the cost model chose."
        )
    large = max(
        (row for row in run.rows if row.columns and row.peak and row.chosen and row.backend != "naive"),
        key=lambda row: row.columns,
        default=None,
    )
    if large is not None:
        said.append(
            f"The textbook column matrix of {_label(large, run)} holds {size(large.columns)}; {way(large)} computed it "
            f"with {size(large.peak)} of scratch."
        )
    said += _predictions(run)
    carried = [row.transfer for row in run.rows if row.transfer is not None]
    if carried:
        said.append(
            f"Times on the device end when it has finished; operands there and results back take {seconds(min(carried))} "
            f"to {seconds(max(carried))} more."
        )
    said += [f"{name} was not compared: {why}." for name, why in run.absent.items()]
    if run.interrupted:
        said.append("The run was interrupted: what had been measured by then is shown.")
    return said


def facts(run: Comparison) -> list[tuple[str, str]]:
    """Machine, versions and method, as pairs."""
    machine = run.machine
    return [
        ("Processor", f"{machine.cpu}, {machine.cpus} CPUs, {machine.threads} threads used"),
        ("System", f"{machine.system}, Python {machine.python}"),
        ("Peak", f"{machine.peak / 1e9:.4g} GFLOP/s float32 in a 1024 x 1024 matrix product, best of 7"),
        ("Bandwidth", f"{machine.bandwidth / 1e9:.3g} GB/s read plus written, copying 128 MiB, best of 7"),
        ("BLAS", machine.blas),
        ("Versions", ", ".join(f"{name} {version}" for name, version in machine.packages.items())),
        ("Memory tracker", run.tracker),
        ("Time taken", seconds(run.seconds)),
    ]


METHOD = (
    "Every algorithm is compared with the definition (plain loops, summed in binary64) on a small version of each "
    "problem before anything is timed. Candidates of one problem are then timed in turns within one process; shown "
    "are the median and the quartiles. The first call, which plans and compiles, is timed apart.",
    "Operations are those of the plain sum, a multiplication and an addition counted as two, so a transform can pass "
    "100 % of the peak. Plain Python loops are timed on a smaller problem of the same kind.",
    "Peak memory is what is allocated above operands and result while a plan runs, measured in a process of its own "
    "after a warm-up, the second largest of several calls. What BLAS keeps for its threads (32 MB each) is not in it.",
    "Layers of networks run on real activations where a photograph or digits feed them; their weights are He-normal "
    "from a fixed seed, since speed does not depend on them.",
)


# ---------------------------------------------------------------------------- charts


def _wrapped(text: str) -> str:
    """A label in two lines where it is long, so that a phone has room for the bars."""
    words, lines = text.split(), [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) > 14:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join(lines)


def _ways(run: Comparison) -> list[str]:
    return list(dict.fromkeys(way(row) for row in run.rows))


def _bars(run: Comparison, rows: Sequence[Row], value: Any, text: Any, hover: Any) -> list[dict[str, Any]]:
    """One horizontal bar for each row, one colour for each way of computing."""
    data = []
    for name in _ways(run):
        some = [row for row in rows if way(row) == name]
        if some:
            data.append(
                {
                    "type": "bar", "orientation": "h", "name": name, "marker": {"color": colour(name)},
                    "y": [_wrapped(_label(row, run)) for row in some],
                    "x": [value(row) for row in some],
                    "text": [text(row) for row in some], "textposition": "outside", "cliponaxis": False,
                    "customdata": [hover(row) for row in some],
                    "hovertemplate": "%{customdata}<extra>" + name + "</extra>",
                }
            )  # fmt: skip
    return data


def _bar_layout(data: Sequence[dict[str, Any]], axis: dict[str, Any]) -> dict[str, Any]:
    groups = {label for trace in data for label in trace["y"]}
    return {
        "height": 130 + 20 * sum(len(trace["x"]) for trace in data) + 14 * len(groups),
        "xaxis": axis,
        "yaxis": {"autorange": "reversed", "automargin": True},
        "barmode": "group", "bargap": 0.25,
    }  # fmt: skip


def _limit(value: float, name: str) -> dict[str, Any]:
    """A line across a bar chart that says what the machine can do at most."""
    line = {
        "type": "line",
        "x0": value,
        "x1": value,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"color": "#888888", "dash": "dot"},
    }
    note = {
        "x": value,
        "yref": "paper",
        "y": 0,
        "text": name,
        "showarrow": False,
        "xanchor": "right",
        "yanchor": "bottom",
    }
    return {"shapes": [line], "annotations": [note]}


def _hover(row: Row) -> str:
    return f"{row.problem}<br>{row.rate / 1e9:.3g} GFLOP/s, {seconds(row.seconds)}<br>{row.note}"


def speed_chart(run: Comparison) -> dict[str, Any]:
    """Operations per second of every convolution."""
    rows = [row for row in run.rows if row.columns and row.backend != "naive"]
    data = _bars(run, rows, lambda row: row.rate / 1e9, lambda row: f"{row.rate / 1e9:.3g}", _hover)
    layout = _bar_layout(data, {"title": {"text": "GFLOP/s (longer is better)"}})
    return {"data": data, "layout": layout | _limit(run.machine.peak / 1e9, "matrix product")}


def pool_chart(run: Comparison) -> dict[str, Any]:
    """Bytes per second of every pool."""
    rows = [row for row in run.rows if not row.columns and row.backend != "naive"]
    data = _bars(
        run,
        rows,
        lambda row: row.traffic / row.seconds / 1e9,
        lambda row: f"{row.traffic / row.seconds / 1e9:.3g}",
        _hover,
    )
    layout = _bar_layout(data, {"title": {"text": "GB/s read and written (longer is better)"}})
    return {"data": data, "layout": layout | _limit(run.machine.bandwidth / 1e9, "plain copy")}


def memory_chart(run: Comparison) -> dict[str, Any]:
    """Measured scratch beside the textbook column matrix."""
    rows = [row for row in run.rows if row.columns and row.backend != "naive" and row.peak]
    data = _bars(
        run, rows, lambda row: row.peak, lambda row: size(row.peak),
        lambda row: f"measured {size(row.peak)}, predicted {size(row.predicted)}",
    )  # fmt: skip
    textbook = _bars(
        run,
        [row for row in rows if row.chosen],
        lambda row: row.columns,
        lambda row: size(row.columns),
        _hover,
    )
    for trace in textbook[:1]:
        everyone = [row for row in rows if row.chosen]
        data.insert(0, trace | {
            "name": "textbook columns", "marker": {"color": "#999999"}, "hovertemplate": "%{text}<extra>textbook columns</extra>",
            "y": [_wrapped(_label(row, run)) for row in everyone], "x": [row.columns for row in everyone],
            "text": [size(row.columns) for row in everyone],
        })  # fmt: skip
    values = [value for trace in data for value in trace["x"]] or [1.0]
    span = [math.log10(min(values)) - 0.5, math.log10(max(values)) + 0.8]  # room for the longest bar's label
    axis = {
        "type": "log",
        "range": span,
        "title": {"text": "bytes (shorter is better)"},
        "exponentformat": "SI",
    }
    return {"data": data, "layout": _bar_layout(data, axis)}


def _points(run: Comparison, x: Any, y: Any, keep: Any) -> list[dict[str, Any]]:
    data = []
    for name in _ways(run):
        rows = [row for row in run.rows if way(row) == name and keep(row)]
        if rows:
            data.append(
                {
                    "type": "scatter", "mode": "markers", "name": name,
                    "marker": {"color": colour(name), "size": 10, "line": {"width": 1, "color": "rgba(128,128,128,.6)"}},
                    "x": [x(row) for row in rows], "y": [y(row) for row in rows],
                    "text": [_label(row, run) for row in rows],
                    "hovertemplate": "%{text}<br>%{x:.3g}, %{y:.3g}<extra>" + name + "</extra>",
                }
            )  # fmt: skip
    return data


def error_chart(run: Comparison) -> dict[str, Any]:
    """Error against speed."""
    data = _points(run, lambda row: row.rate / 1e9, lambda row: row.error, lambda row: bool(row.error))
    return {
        "data": data,
        "layout": {
            "height": 460,
            "xaxis": {"type": "log", "title": {"text": "GFLOP/s (right is faster)"}},
            "yaxis": {
                "type": "log",
                "title": {"text": "relative error (down is better)"},
                "exponentformat": "power",
            },
        },
    }


def roofline_chart(run: Comparison) -> dict[str, Any]:
    """Operations per second against operations per byte, under what the machine can do."""
    peak, bandwidth = run.machine.peak, run.machine.bandwidth
    data = _points(
        run,
        lambda row: row.flops / row.traffic,
        lambda row: row.rate / 1e9,
        lambda row: row.backend != "naive",
    )
    xs = [x for trace in data for x in trace["x"]] or [1.0]
    low, high = min(*xs, peak / bandwidth) / 3, max(*xs, peak / bandwidth) * 3
    data.insert(
        0,
        {
            "type": "scatter", "mode": "lines", "name": "what the machine can do", "line": {"color": "#888888", "width": 2},
            "x": [low, peak / bandwidth, high],
            "y": [low * bandwidth / 1e9, peak / 1e9, peak / 1e9],
            "hoverinfo": "skip",
        },
    )  # fmt: skip
    return {
        "data": data,
        "layout": {
            "height": 460,
            "xaxis": {"type": "log", "title": {"text": "operations per byte of operands and result"}},
            "yaxis": {"type": "log", "title": {"text": "GFLOP/s"}},
        },
    }


CHARTS = (
    (
        "speed", "Speed", speed_chart,
        "Operations of the plain sum per second, for every convolution. Plain loops are left out; their bars would be "
        "thinner than a line.",
    ),
    (
        "pooling", "Pooling", pool_chart,
        "A pool does hardly any arithmetic, so what counts is how fast it moves bytes. The dotted line is a plain copy.",
    ),
    (
        "memory", "Memory", memory_chart,
        "Grey is what unfolding every window at once would take, as textbooks do it. Colours are what was measured: "
        "columns are made and used in blocks. The scale is logarithmic.",
    ),
    (
        "error", "Error against speed", error_chart,
        "Each point is one problem. float32 holds about 6e-8, one rounding; sums of many products lose a little more, "
        "whichever way they are formed.",
    ),
    (
        "roofline", "Roofline", roofline_chart,
        "The line is the machine: memory bandwidth on its slope, arithmetic on its flat part. A point's distance below "
        "it is what is left to gain; points above it are transforms, or problems small enough to stay in cache.",
    ),
)  # fmt: skip


# ---------------------------------------------------------------------------- the page


def _table(run: Comparison) -> list[dict[str, Any]]:
    base = baselines(run)
    made = []
    for row in run.rows:
        numbers = (
            row.seconds, (row.high - row.low) / row.seconds if row.seconds else 0.0, row.rate, row.rate / run.machine.peak,
            against(row, base, "naive"), against(row, base, "im2col"), row.peak,
            row.predicted, row.error, row.first_call,
        )  # fmt: skip
        made.append(
            {
                "cells": list(zip(cells(row, run, base), ["", "", "", *numbers], strict=True)),
                "problem": row.problem,
                "note": row.note + (f" (timed on {row.timed})" if row.timed else ""),
                "agrees": row.agrees,
                "colour": colour(way(row)),
            }
        )
    return made


def html(run: Comparison, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """The report as one page: styles, charts, pictures and the chart library inside."""
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fastconv", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    charts = [
        {
            "id": name,
            "title": title,
            "caption": caption,
            "figure": json.dumps(chart(run)).replace("<", "\\u003c"),
        }
        for name, title, chart, caption in CHARTS
        if chart(run)["data"]
    ]
    return environment.get_template("compare/report.html.jinja").render(
        title=headline(run),
        workload=run.workload,
        summary=summary(run),
        ok=run.ok,
        disagreements=run.disagreements,
        charts=charts,
        pictures=pictures,
        columns=COLUMNS,
        rows=_table(run),
        notes=NOTES,
        facts=facts(run),
        method=METHOD,
        plotly=get_plotlyjs(),
    )


def write(
    run: Comparison, output: Path, json_path: Path | None = None, pictures: Sequence[tuple[str, str]] = ()
) -> list[Path]:
    """Write page, Markdown table and JSON; return their paths."""
    texts = {
        output: html(run, pictures),
        output.with_suffix(".md"): markdown(run),
        json_path or output.with_suffix(".json"): run.as_json(),
    }
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return list(texts)
