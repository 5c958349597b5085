"""The command ``fastconv``: compare, check, explain, train, explore, warm, info."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastconv import gpu, progress
from fastconv.backends import BackendUnavailable, backends
from fastconv.backends import check as check_backend

app = typer.Typer(
    help="Convolution and pooling for NumPy and CuPy arrays.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False,
)  # fmt: skip
console = Console()

# sysexits of a Unix tool: 0 well, 1 the answer is no, 2 asked wrongly, 130 stopped by Ctrl-C.
NO, USAGE, STOPPED = 1, 2, 130

Backend = Annotated[list[str] | None, typer.Option("--backend", help="Only this backend; may be repeated.")]
Problem = Annotated[
    list[str] | None,
    typer.Option("--problem", help='A problem such as "n1 c64x56x56 k64x3x3 s1 p1 f32"; may be repeated.'),
]


def _usage(error: Exception) -> NoReturn:
    Console(stderr=True).print(
        f"fastconv: {error}", style="red", highlight=False, markup=False, soft_wrap=True
    )
    raise typer.Exit(USAGE)


@contextmanager
def _asked() -> Iterator[None]:
    """Show what the user got wrong as one line, not as a traceback."""
    try:
        yield
    except (ValueError, TypeError, BackendUnavailable) as error:
        _usage(error)


def _only(names: Iterable[str] | None) -> list[str] | None:
    if not names:
        return None
    for name in names:
        check_backend(name, "--backend")
        if name == "auto":
            raise ValueError("--backend: got 'auto', expected the name of a backend")
    return list(names)


def _percentage(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if value < 0:
        raise ValueError(f"--fail-slower: got {text!r}, expected a share such as 10% or 0.1")
    return value


@app.command()
def compare(
    workload: Annotated[
        str | None, typer.Option(help="lenet, simple, alexnet, vgg16, googlenet, resnet50 or mobilenet.")
    ] = None,
    problem: Problem = None,
    backend: Backend = None,
    threads: Annotated[int | None, typer.Option(help="Threads a call may use; all CPUs by default.")] = None,
    gradients: Annotated[bool, typer.Option("--gradients", help="Compare the gradients too.")] = False,
    repeat: Annotated[int, typer.Option(min=1, help="Timed calls of each candidate, at most.")] = 7,
    output: Annotated[Path, typer.Option(help="The page to write; .md and .json go beside it.")] = Path(
        "report.html"
    ),
    json: Annotated[Path | None, typer.Option(help="Where the JSON goes instead.")] = None,
    against: Annotated[Path | None, typer.Option(help="JSON of an earlier run to compare with.")] = None,
    fail_slower: Annotated[
        str, typer.Option(help="With --against: exit with 1 past this.", metavar="SHARE")
    ] = "10%",
) -> None:
    """Check every backend, time it, measure its memory, and write a report.

    By default a photograph and scanned digits go through filter banks and the first layers of known networks.
    """
    from fastconv import compare as comparing
    from fastconv.compare import report

    with _asked():
        if workload and problem:
            raise ValueError("--workload and --problem: got both, expected one of them")
        if threads is not None and threads < 1:
            raise ValueError(f"--threads: got {threads}, expected at least 1")
        cases: Any = comparing.default
        name = "a photograph and a hundred digits"
        if workload:
            name, cases = f"the layers of {workload}", comparing.named(workload)
        elif problem:
            name, cases = (
                f"{len(problem)} chosen problem{'s' * (len(problem) > 1)}",
                comparing.problems(problem),
            )
        only, share = _only(backend), _percentage(fail_slower)
        before = comparing.read(against) if against else None
        for path in (output, *([json] if json else [])):
            if not path.absolute().parent.is_dir():
                raise ValueError(f"--output: got {str(path)!r}, expected a path in a folder that exists")
        with progress.bar() as bar:
            task = bar.add_task("starting", total=None)

            def show(done: float, total: float, text: str) -> None:
                bar.update(task, completed=done, total=total, description=text)

            try:
                run = comparing.compare(
                    cases,
                    workload=name,
                    only=only,
                    repeat=repeat,
                    threads=threads,
                    gradients=gradients,
                    report=show,
                )
            except ImportError as error:
                raise ValueError(
                    f'{error}; the default workload needs scikit-learn: pip install "fastconv[learn]"'
                ) from None
    console.print(report.terminal(run, console.width))
    for sentence in report.summary(run):
        console.print(f"- {sentence}", highlight=False, markup=False)
    pictures = comparing.pictures() if cases is comparing.default else ()
    written = report.write(run, output, json, pictures)
    console.print("wrote " + ", ".join(map(str, written)), highlight=False, soft_wrap=True)
    failed = not run.ok
    if before is not None:
        found = comparing.slower(run, before, share)
        if found:
            console.print(report.slower_table(found, share))
        else:
            console.print(f"nothing is slower than in {against} by more than {share:.0%}")
        failed = failed or bool(found)
    if run.interrupted:
        raise typer.Exit(STOPPED)
    if failed:
        raise typer.Exit(NO)


@app.command()
def check(backend: Backend = None, problem: Problem = None) -> None:
    """Compare every backend, algorithm and op with the definition; exit with 1 if any disagrees."""
    from fastconv import testing
    from fastconv.spec import parse

    with _asked():
        names = _only(backend)
        for text in problem or ():
            parse(text)
        problems = problem or list(testing.PROBLEMS["edges"])
        tally: dict[tuple[str, str, str], list[testing.Agreement]] = {}
        with progress.bar() as bar:
            for text in bar.track(problems, description="checking"):
                for agreement in testing.checks(names, [text]):
                    key = agreement.backend, agreement.op.value, agreement.algorithm
                    tally.setdefault(key, []).append(agreement)
    table = Table(title=f"{len(problems)} problems against the definition", title_justify="left")
    for name in ("backend", "op", "algorithm"):
        table.add_column(name)
    for name in ("comparisons", "agree", "largest error", "of what is allowed"):
        table.add_column(name, justify="right")
    for key, found in sorted(tally.items()):
        good = sum(a.ok for a in found)
        worst = max(a.error for a in found)
        share = max((a.error / a.allowed for a in found if a.allowed), default=0.0)
        style = "" if good == len(found) else "bold red"
        table.add_row(
            *key, str(len(found)), str(good), f"{worst:.1e}", f"{share:.1%}" if share else "-", style=style
        )
    console.print(table)
    wrong = [agreement for found in tally.values() for agreement in found if not agreement.ok]
    for agreement in wrong:
        console.print(
            f"{agreement.backend}/{agreement.algorithm} {agreement.op}: {agreement.detail}", style="red"
        )
        console.print(f"  {agreement.repeat}", highlight=False, soft_wrap=True)
    total = sum(map(len, tally.values()))
    console.print(f"{total - len(wrong)} of {total} comparisons agree", style="red" if wrong else "green")
    if wrong:
        raise typer.Exit(NO)


@app.command()
def explain(
    problem: Annotated[str, typer.Argument(help='Such as "n1 c64x56x56 k64x3x3 s1 p1 f32".')],
    op: Annotated[str | None, typer.Option(help='"conv", "conv input grad", "pool", ...')] = None,
    backend: Annotated[str | None, typer.Option(help="Backend; the current one by default.")] = None,
    algorithm: Annotated[
        str, typer.Option(help='Algorithm; "auto" (the cost model) by default; "measure".')
    ] = "auto",
    precision: Annotated[str, typer.Option(help="default, highest or tf32.")] = "default",
    workspace_limit: Annotated[int | None, typer.Option(help="Bytes of scratch.")] = None,
) -> None:
    """Show the plan that a problem would run, what it costs, and who declined."""
    from fastconv.api import explain as explain_problem

    with _asked():
        made = explain_problem(
            problem,
            op=op,
            backend=backend,
            algorithm=algorithm,
            precision=precision,
            workspace_limit=workspace_limit,
        )
        console.print(str(made), highlight=False, soft_wrap=True)


@app.command()
def train(
    model: Annotated[str, typer.Option(help="simple, lenet or resnet.")] = "simple",
    data: Annotated[str, typer.Option(help="digits: scikit-learn's 1,797 scans.")] = "digits",
    backend: Annotated[str | None, typer.Option(help="Backend; the current one by default.")] = None,
    epochs: Annotated[int, typer.Option(help="How many times all images are seen.")] = 14,
    batch_size: Annotated[int, typer.Option(help="Images in a step.")] = 50,
    rate: Annotated[float, typer.Option(help="Adam's learning rate; it falls to 0 along a cosine.")] = 0.004,
    seed: Annotated[int, typer.Option(help="The same seed gives the same network.")] = 0,
    output: Annotated[
        Path | None, typer.Option(help="Where the weights go: a .npz or .safetensors file.")
    ] = None,
) -> None:
    """Train a small network and measure it on images held out."""
    import numpy as np

    from fastconv import nn
    from fastconv.nn import data as datasets
    from fastconv.nn import files, models
    from fastconv.settings import get_backend, use_backend

    with _asked():
        for option, value, known in (("model", model, models.SMALL), ("data", data, datasets.DATA)):
            if value not in known:
                raise ValueError(f"--{option}: got {value!r}, expected one of {', '.join(known)}")
        if seed < 0:
            raise ValueError(f"--seed: got {seed}, expected at least 0")
        if output is not None:
            files.check(output)
        try:
            split = datasets.DATA[data]()
        except ImportError as error:
            raise ValueError(str(error)) from None
        rng = np.random.default_rng(seed)
        network = models.SMALL[model](rng=rng)
        try:
            with use_backend(backend or get_backend()):
                history = nn.fit(
                    network, split.x, split.labels, epochs=epochs, batch_size=batch_size, optimiser=nn.Adam(rate),
                    test=(split.test_x, split.test_labels), schedule=nn.cosine, augment=nn.shifted, rng=rng,
                )  # fmt: skip
        except KeyboardInterrupt:
            raise typer.Exit(STOPPED) from None
        if output is not None:
            nn.save(network, output)
    console.print(str(network), highlight=False)
    table = Table(
        title=f"{model} on {len(split.x):,} {data}, {len(split.test_x)} held out", title_justify="left"
    )
    for name in ("epoch", "loss", "accuracy", "held out", "seconds"):
        table.add_column(name, justify="right")
    for number, row in enumerate(history, 1):
        accuracies = (f"{row.accuracy:.1%}", f"{row.test_accuracy:.1%}")
        table.add_row(str(number), f"{row.loss:.4f}", *accuracies, f"{row.seconds:.2f}")
    console.print(table)
    console.print(f"{history[-1].test_accuracy:.2%} of the images held out are recognised", highlight=False)
    if output is not None:
        console.print(f"wrote {output}", highlight=False, soft_wrap=True)


@app.command()
def explore(
    model: Annotated[
        str, typer.Option(help="simple or lenet; with --image also vgg16, alexnet, resnet18 or resnet50.")
    ] = "simple",
    data: Annotated[str, typer.Option(help="digits: scikit-learn's 1,797 scans.")] = "digits",
    image: Annotated[Path | None, typer.Option(help="One picture to look at, instead of training.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="With --image: the .npz, .safetensors or .onnx file of its weights.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="Backend; the current one by default.")] = None,
    epochs: Annotated[int, typer.Option(help="How many times all images are seen.")] = 14,
    rate: Annotated[float, typer.Option(help="Adam's learning rate; it falls to 0 along a cosine.")] = 0.004,
    seed: Annotated[int, typer.Option(help="The same seed gives the same network.")] = 0,
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("explore.html"),
) -> None:
    """Train a network, or load one, and write a page that shows what it sees, from pixels to class."""
    from fastconv.explore import page
    from fastconv.nn import data as datasets
    from fastconv.nn import models
    from fastconv.settings import get_backend, use_backend

    with _asked():
        known = [*models.MODELS, *(page.PHOTO_MODELS if image else ())]
        for option, value, some in (("model", model, known), ("data", data, list(datasets.DATA))):
            if value not in some:
                raise ValueError(f"--{option}: got {value!r}, expected one of {', '.join(some)}")
        if image is None and weights is not None:
            raise ValueError("--weights: got a file but no --image, expected both or neither")
        if image is not None and weights is None:
            raise ValueError(
                f"--weights: got none, expected a file: with random weights {model} would see nothing in {image.name}"
            )
        for option, path in (("image", image), ("weights", weights)):
            if path is not None and not path.is_file():
                raise ValueError(f"--{option}: got {str(path)!r}, expected a file that exists")
        if seed < 0:
            raise ValueError(f"--seed: got {seed}, expected at least 0")
        if not output.absolute().parent.is_dir():
            raise ValueError(f"--output: got {str(output)!r}, expected a path in a folder that exists")
        try:
            with use_backend(backend or get_backend()):
                if image is None or weights is None:
                    made = _explored_digits(model, datasets.DATA[data](), epochs, rate, seed)
                else:
                    made = _explored_photo(model, image, weights)
        except ImportError as error:
            raise ValueError(str(error)) from None
        except KeyboardInterrupt:
            raise typer.Exit(STOPPED) from None
        page.write(made, output)
    for sentence in made.summary:
        console.print(f"- {sentence}", highlight=False, markup=False)
    console.print(f"wrote {output}", highlight=False, soft_wrap=True)


@contextmanager
def _saying(total: int | None) -> Iterator[Callable[[str], None]]:
    """A bar that takes one step with each text."""
    with progress.bar() as bar:
        task = bar.add_task("starting", total=total)
        begun = False

        def say(text: str) -> None:
            nonlocal begun
            bar.update(task, description=text, advance=int(begun))
            begun = True

        yield say


def _explored_digits(name: str, split: Any, epochs: int, rate: float, seed: int) -> Any:
    import copy

    import numpy as np

    from fastconv import nn
    from fastconv.explore import page
    from fastconv.nn import models

    rng = np.random.default_rng(seed)
    # From small weights filters are seen to learn; He's are so large that they stay about where they begin.
    network = models.MODELS[name](rng=rng, **({"init": "plain"} if name == "simple" else {}))
    start = copy.deepcopy(network)
    history = nn.fit(
        network, split.x, split.labels, epochs=epochs, batch_size=50, optimiser=nn.Adam(rate),
        test=(split.test_x, split.test_labels), schedule=nn.cosine, augment=nn.shifted, rng=rng,
    )  # fmt: skip
    with _saying(page.DIGIT_PARTS) as say:
        return page.of_digits(page.NAMES[name], network, start, split, history, say)


def _explored_photo(name: str, image: Path, weights: Path) -> Any:
    from fastconv import nn
    from fastconv.explore import page, photograph
    from fastconv.nn import files, models

    files.check(weights, files.READ)
    small = name in models.MODELS
    size, channels = page.SMALL if small else page.LARGE
    x = photograph(image, size, channels)
    network = models.MODELS[name]() if small else page.PHOTO_MODELS[name](init=0.0)
    nn.load(network, weights)
    with _saying(None) as say:
        return page.of_photo(page.NAMES[name], network, x, image.name, say)


@app.command()
def warm(
    dtype: Annotated[
        list[str] | None,
        typer.Option(help="float32, float64, int32 or int64; repeatable; float32 by default."),
    ] = None,
) -> None:
    """Compile the CPU engine's kernels ahead, so that no first call has to."""
    from fastconv.backends import get

    get("numba")
    from fastconv.backends.numba import jit, threads

    wanted = dtype or ["float32"]
    with _asked():
        for name in wanted:
            if name not in jit.COMPUTED:
                raise ValueError(f"dtype: got {name!r}, expected one of {', '.join(jit.COMPUTED)}")
    total = sum(name in kernel.dtypes for kernel in jit.KERNELS for name in wanted)
    with progress.bar() as bar:
        task = bar.add_task("compiling", total=total)
        for _ in threads.warm(wanted):
            bar.advance(task)
    console.print(f"{total} kernels are compiled and kept in {jit.cache_folder().parent}", highlight=False)


@app.command()
def info() -> None:
    """Show versions, processor, threads and backends."""
    from fastconv.compare import machine
    from fastconv.settings import get_backend
    from fastconv.threads import get_num_threads

    table = Table(show_header=False, box=None)
    table.add_row("processor", machine.cpu_name())
    table.add_row("threads", str(get_num_threads()))
    table.add_row("BLAS", machine.blas_name())
    for name, version in machine.versions().items():
        table.add_row(name, version)
    table.add_row("default backend", get_backend())
    for name, state in backends().items():
        table.add_row(f"backend {name}", Text(state))  # an extra's brackets are no markup
    table.add_row("cuDNN", Text(gpu.cudnn() or "available"))
    console.print(table, highlight=False)
