"""The README and the docs say what is so: their code runs, their links lead somewhere, their claims hold."""

from __future__ import annotations

import doctest
import importlib.util
import re
import shlex
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from typer.testing import CliRunner

import fastconv as fc
from fastconv import cli, explore, grad

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TRANSLATIONS = {page: page.with_name(page.name.replace(".ja.", ".")) for page in PAGES if ".ja." in page.name}

_hook = importlib.util.spec_from_file_location("tutorials", DOCS / "tutorials.py")
assert _hook is not None
assert _hook.loader is not None
tutorials = importlib.util.module_from_spec(_hook)
_hook.loader.exec_module(tutorials)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> Iterator[tuple[int, str, str]]:
    """Line, language and text of every fenced block in one of these languages."""
    for found in BLOCK.finditer(TEXTS[page]):
        if found[1] in languages:
            yield TEXTS[page].count("\n", 0, found.start()) + 1, found[1], found[2]


# --- code


WITH_CODE = [page for page in PAGES if page not in TRANSLATIONS and any(blocks(page, "python", "pycon"))]


def test_there_is_code_to_run() -> None:
    assert {name(page) for page in WITH_CODE} >= {"README.md", "docs/quickstart.md", "docs/semantics.md"}
    languages = {language for page in PAGES for _, language, _ in blocks(page, "", "py", "python3")}
    assert not languages, "a code block that no test runs"


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every page is one session; what is printed is what it shows, and what a tutorial draws is as large as its pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    for line, language, text in blocks(page, "python", "pycon"):
        if language == "python":
            exec(compile("\n" * line + text, name(page), "exec"), names)
            continue
        test = doctest.DocTestParser().get_doctest(text, names, name(page), name(page), line)
        assert test.examples, f"{name(page)}:{line}: no >>> in a pycon block"
        report: list[str] = []
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
        assert runner.run(test, out=report.append, clear_globs=False).failed == 0, "".join(report)
        names = test.globs
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    if page.parent != DOCS / "tutorials":
        return
    shown = set(tutorials.PICTURE.findall(TEXTS[page]))
    assert {drawn.name for drawn in tmp_path.glob("*.png")} == shown
    for picture in shown:
        assert size(tmp_path / picture) == size(page.with_name(picture)), picture


def size(picture: Path) -> tuple[int, int]:
    """Width and height of a PNG file."""
    width, height = struct.unpack(">II", picture.read_bytes()[16:24])
    return width, height


def test_pictures_were_drawn_by_their_pages() -> None:
    """A page whose code has changed draws its pictures anew: mkdocs build."""
    pages = [page for page in WITH_CODE if page.parent == DOCS / "tutorials"]
    shown = [(page, picture) for page in pages for picture in tutorials.PICTURE.findall(TEXTS[page])]
    for page, picture in shown:
        assert tutorials.is_of(page.with_name(picture), TEXTS[page]), f"{name(page)}: {picture} is stale"
        assert page.with_name(picture).stat().st_size < 60_000
    assert len({page.with_name(picture) for page, picture in shown}) == len(shown)
    assert {page.with_name(picture) for page, picture in shown} == set((DOCS / "tutorials").glob("*.png"))


@pytest.mark.parametrize("page", TRANSLATIONS, ids=name)
def test_translations_have_the_same_code_pictures_and_parts(page: Path) -> None:
    """So their code need not run again."""
    original = TRANSLATIONS[page]
    for pattern in (BLOCK, tutorials.PICTURE, re.compile(r"^(#+) ", re.MULTILINE)):
        assert pattern.findall(TEXTS[page]) == pattern.findall(TEXTS[original])
    here, there = (
        [path.replace(".ja.md", ".md") for path in re.findall(r"\]\(([\w./#-]+)\)", TEXTS[each])]
        for each in (page, original)
    )
    assert sorted(set(here)) == sorted(set(there))


# --- the README's promises


def test_readme_is_short() -> None:
    assert len(TEXTS[README].splitlines()) <= 150


@pytest.mark.parametrize(
    "command",
    [
        'python3 -m venv .venv && .venv/bin/pip install -q -e ".[learn,bench]" && .venv/bin/fastconv compare',
        'python3 -m venv .venv && .venv/bin/pip install -q -e ".[dev]" && .venv/bin/python -m pytest -n 2 --dist loadfile',
    ],
)
def test_readme_commands_are_single_lines(command: str) -> None:
    assert [text for _, _, text in blocks(README, "sh") if text == command + "\n"] == [command + "\n"]


def test_readme_has_the_place_of_the_table() -> None:
    assert re.search(r"^<!-- table: fastconv compare -->\n(.*\n)*?<!-- end -->$", TEXTS[README], re.MULTILINE)


# --- links


def slug(heading: str) -> str:
    """The anchor that Python-Markdown gives a heading."""
    words = re.sub(r"[^\w\s-]", "", re.sub(r"[`*]", "", heading)).strip().lower()
    return re.sub(r"[\s-]+", "-", words)


def anchors(page: Path) -> set[str]:
    prose = BLOCK.sub("", TEXTS[page])
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", prose, re.MULTILINE)}


LINKS = [
    (page, target)
    for page in PAGES
    for target in re.findall(r"(?<!!)\[[^\]\n]+(?:\n[^\]\n]+)?\]\(([^)\s]+)\)", BLOCK.sub("", TEXTS[page]))
    if not target.startswith(("http:", "https:"))
]


@pytest.mark.parametrize(
    ("page", "target"), LINKS, ids=[f"{name(page)} to {target}" for page, target in LINKS]
)
def test_links_lead_somewhere(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    goal = (page.parent / path).resolve() if path else page
    assert goal in TEXTS, f"there is no page {target}"
    assert not anchor or anchor in anchors(goal), f"{name(goal)} has no heading #{anchor}"


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"[\w./-]+\.md", (ROOT / ".mkdocs.yml").read_text(encoding="utf-8")))
    assert listed == {page.relative_to(DOCS).as_posix() for page in PAGES if page != README}
    decisions = {page.name for page in PAGES if page.parent.name == "decisions"} - {"index.md"}
    assert decisions == set(re.findall(r"\d{4}-[\w-]+\.md", TEXTS[DOCS / "decisions" / "index.md"]))


# --- coverage


def test_everything_that_is_asked_for_has_a_test_that_exists() -> None:
    """A line each, in order; each names a test function or file, and pictures that are there."""
    lines = re.findall(r"^\| (\d+) \| (.+) \|$", TEXTS[DOCS / "coverage.md"], re.MULTILINE)
    assert [int(number) for number, _ in lines] == list(range(1, 73))
    for number, line in lines:
        *_, tests, shown = re.split(r"(?<!\\) \| ", line)
        file = ""
        named = re.findall(r"`(\w+\.py)?(?:::)?(test_\w+)?(?:\[[^`]+\])?`", tests)
        assert named, f"{number} names no test"
        for given, function in named:
            file = given or file
            text = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert not function or f"def {function}(" in text, f"{number}: {file} has no {function}"
        for picture in re.findall(r"docs/[\w./-]+\.png", shown):
            assert (ROOT / picture).is_file(), f"{number}: there is no {picture}"


# --- problem strings, commands, names


PROBLEM = re.compile(r"[\"`]((?:(?:max|avg|lp[\d.]+) )?n\d+ c\d[^\"`]*)[\"`]")


def test_problem_strings_can_be_read() -> None:
    found = {text for page in PAGES for text in PROBLEM.findall(TEXTS[page])}
    assert len(found) > 10
    for text in found:
        assert fc.parse(str(fc.parse(text))) == fc.parse(text)


COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
CALLS = [
    line.removeprefix("$ ")
    for page in PAGES
    for _, _, text in blocks(page, "console")
    for line in text.splitlines()
    if line.startswith("$ fastconv")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_described(command: str) -> None:
    text = TEXTS[DOCS / "command-line.md"].partition(f"## fastconv {command}\n")[2].partition("\n## ")[0]
    described = set(re.findall(r"^\| `(--[\w-]+)`", text, re.MULTILINE))
    options = {
        option for parameter in COMMANDS[command].params for option in parameter.opts if "--" in option
    }
    assert described == options - {"--help"}


@pytest.mark.parametrize("line", CALLS)
def test_commands_are_well_formed(line: str) -> None:
    _, command, *arguments = shlex.split(line)
    context = COMMANDS[command].make_context(command, list(arguments), resilient_parsing=True)
    assert not context.args, f"not understood: {context.args}"
    if command in ("explain", "info") or (command == "check" and arguments):
        result = CliRunner().invoke(cli.app, [command, *arguments])
        assert result.exit_code == 0, result.output


def test_every_public_name_has_its_place_in_the_api_pages() -> None:
    shown = set(re.findall(r"^::: fastconv\.([\w.]+)$", "\n".join(TEXTS.values()), re.MULTILINE))
    public = {attribute for attribute in fc.__all__ if attribute not in ("grad", "backends")}
    public |= {"backends.backends"}
    public |= {
        f"grad.{attribute}"
        for attribute, value in vars(grad).items()
        if callable(value) and re.search(r"\dd(_\w+)?$|^(un)?fold$", attribute)
    }
    public |= {f"explore.{attribute}" for attribute in explore.__all__}
    assert public <= shown
    assert len(public) > 80


# --- what the semantics page says of others


class Others:
    """torch, ONNX and SciPy behind one face: each takes and gives NumPy arrays."""

    def __init__(self) -> None:
        import scipy.ndimage
        import scipy.signal

        self.signal: Any = scipy.signal
        self.ndimage: Any = scipy.ndimage
        self.torch: Any = pytest.importorskip("torch", reason="torch is not installed")
        self.onnx: Any = pytest.importorskip("onnx", reason="onnx is not installed")
        self.runtime: Any = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

    def in_torch(self, function: str, *arguments: Any, **keywords: Any) -> Any:
        """A function of torch.nn.functional on arrays."""
        given = [self.torch.from_numpy(a.copy()) if isinstance(a, np.ndarray) else a for a in arguments]
        result = getattr(self.torch.nn.functional, function)(*given, **keywords)
        return tuple(r.numpy() for r in result) if isinstance(result, tuple) else result.numpy()

    def in_onnx(self, op: str, *arrays: Any, results: int = 1, **attributes: Any) -> Any:
        """One node in ONNX Runtime."""
        helper, kinds = self.onnx.helper, self.onnx.TensorProto
        ins, outs = [f"i{n}" for n in range(len(arrays))], [f"o{n}" for n in range(results)]
        types = [
            kinds.INT32 if op == "ConvInteger" else helper.np_dtype_to_tensor_dtype(arrays[0].dtype),
            kinds.INT64,
        ]
        graph = helper.make_graph(
            [helper.make_node(op, ins, outs, **attributes)],
            "one",
            [
                helper.make_tensor_value_info(i, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
                for i, a in zip(ins, arrays, strict=True)
            ],
            [helper.make_tensor_value_info(o, t, None) for o, t in zip(outs, types, strict=False)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
        options = self.runtime.SessionOptions()
        options.log_severity_level = 4
        session = self.runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        found = session.run(None, dict(zip(ins, arrays, strict=True)))
        return found if results > 1 else found[0]


@pytest.fixture(scope="module")
def others() -> Others:
    return Others()


def whole(*shape: int, dtype: Any = "f4") -> Any:
    return np.random.default_rng(list(shape)).integers(-4, 5, shape).astype(dtype)


def same(a: Any, b: Any) -> None:
    np.testing.assert_array_equal(a, b)


def flip(o: Others) -> None:
    x, w = whole(9), whole(4)
    ours = fc.conv1d(x[None], w[None, None])[0]
    same(ours, o.in_torch("conv1d", x[None], w[None, None])[0])
    same(ours, o.in_onnx("Conv", x[None, None], w[None, None])[0, 0])
    same(ours, o.signal.correlate(x, w, "valid"))
    same(ours, np.correlate(x, w, "valid"))
    same(ours, o.signal.convolve(x, w[::-1], "valid"))
    same(ours, np.convolve(x, w[::-1], "valid"))


def empty_channels(o: Others) -> None:
    x, w = np.ones((1, 0, 5), "f4"), np.ones((3, 0, 2), "f4")
    assert o.in_torch("conv1d", x, w).shape == (1, 0, 4)
    with pytest.raises(ValueError, match="weight"):
        fc.conv1d(x, w)


def lists(o: Others) -> None:
    with pytest.raises(TypeError, match=r"numpy\.asarray"):
        fc.conv1d([[1.0]], np.ones((1, 1, 1)))
    same(o.signal.correlate([1, 2], [1]), [1, 2])


def padding_forms(o: Others) -> None:
    x, w = np.ones((1, 1, 3, 3), "f4"), np.ones((1, 1, 2, 2), "f4")
    for padding in (((1, 0), (0, 1)), "same"):
        assert fc.max_pool2d(x, 2, 1, padding).shape == fc.conv2d(x, w, padding=padding).shape
        with pytest.raises(TypeError):
            o.in_torch("max_pool2d", x, 2, 1, padding)
    with pytest.raises(TypeError):
        o.in_torch("conv2d", x, w, padding=((1, 0), (0, 1)))


def same_padding(o: Others) -> None:
    for size, k, s in ((7, 4, 1), (7, 4, 2), (8, 3, 2)):
        x, w = whole(1, 1, size), whole(1, 1, k)
        upper, lower = (fc.conv1d(x, w, stride=s, padding=form) for form in ("same", "same_lower"))
        same(upper, o.in_onnx("Conv", x, w, strides=[s], auto_pad="SAME_UPPER"))
        same(lower, o.in_onnx("Conv", x, w, strides=[s], auto_pad="SAME_LOWER"))
    x, w = whole(7), whole(4)
    lower = fc.conv1d(x[None], w[None, None], padding="same_lower")[0]
    same(lower, o.signal.correlate(x, w, "same"))
    same(lower, np.correlate(x, w, "same"))
    same(lower, o.ndimage.correlate1d(x, w, mode="constant"))
    with pytest.raises(RuntimeError, match="strided"):
        o.in_torch("conv1d", x[None], w[None, None], stride=2, padding="same")


def padding_modes(o: Others) -> None:
    o.torch.nn.Conv2d(1, 1, 3, padding_mode="circular")
    with pytest.raises(ValueError, match="symmetric"):
        o.torch.nn.Conv2d(1, 1, 3, padding_mode="symmetric")
    x, w = np.arange(4.0), np.ones((1, 1, 3))
    for ours, theirs, reach in (("reflect", "reflect", 3), ("circular", "circular", 4)):
        padded = o.in_torch("pad", x[None], (reach, reach), mode=theirs)
        same(fc.conv1d(x[None], w, padding=reach, padding_mode=ours), fc.conv1d(padded, w))
        with pytest.raises(RuntimeError):
            o.in_torch("pad", x[None], (reach + 1, reach + 1), mode=theirs)
        with pytest.raises(ValueError, match=f"at most {reach}"):
            fc.conv1d(x[None], w, padding=reach + 1, padding_mode=ours)
    same(o.ndimage.correlate1d(x, w[0, 0]), o.ndimage.correlate1d(x, w[0, 0], mode="reflect"))
    same(np.pad(x, 9, mode="wrap")[:3], [3, 0, 1])


def padded_zeros(o: Others) -> None:
    x, w = np.ones((1, 1, 3, 3), "f4"), np.ones((1, 1, 3, 3), "f4")
    w[0, 0, 0, 0] = np.inf
    ours = fc.conv2d(x, w, padding=1)
    assert np.isnan(ours).sum() == 5
    same(ours, o.in_torch("conv2d", x, w, padding=1))
    same(ours, o.in_onnx("Conv", x, w, pads=[1] * 4))
    same(ours[0, 0], o.signal.correlate(x[0, 0], w[0, 0], "same", "direct"))


def pool_padding(o: Others) -> None:
    x = -np.arange(1, 10, dtype="f4").reshape(1, 1, 3, 3)
    ours = fc.max_pool2d(x, 2, 1, 1)
    same(ours, o.in_torch("max_pool2d", x, 2, 1, 1))
    same(ours, o.in_onnx("MaxPool", x, kernel_shape=[2, 2], pads=[1] * 4))
    assert o.ndimage.maximum_filter(x[0, 0], 2, mode="constant").max() == 0
    with pytest.raises(RuntimeError, match="half of kernel size"):
        o.in_torch("max_pool2d", x, 2, 1, 2, 3)
    assert fc.max_pool2d(x, 2, 1, 2, 3).shape == (1, 1, 4, 4)


def pool_stride(o: Others) -> None:
    x = whole(1, 1, 6)
    same(fc.max_pool1d(x, 2), o.in_torch("max_pool1d", x, 2))
    same(fc.max_pool1d(x, 2, 1), o.in_onnx("MaxPool", x, kernel_shape=[2]))


def ceil_mode(o: Others) -> None:
    for size, k, s, p in ((4, 2, 3, 1), (5, 2, 5, 1), (4, 2, 5, 1), (5, 2, 3, 1)):
        x = whole(1, 1, size)
        ours = fc.max_pool1d(x, k, s, p, ceil_mode=True)
        same(ours, o.in_torch("max_pool1d", x, k, s, p, ceil_mode=True))
        same(ours, o.in_onnx("MaxPool", x, kernel_shape=[k], strides=[s], pads=[p, p], ceil_mode=1))
    x = np.arange(1, 17, dtype="f4").reshape(1, 1, 4, 4)
    same(fc.avg_pool2d(x, 3, 2, 1, ceil_mode=True), o.in_torch("avg_pool2d", x, 3, 2, 1, ceil_mode=True))


def divisors(o: Others) -> None:
    x = np.ones((1, 1, 4), "f4")
    same(fc.avg_pool1d(x, 3, 1, 1), o.in_torch("avg_pool1d", x, 3, 1, 1))
    excluded = fc.avg_pool1d(x, 3, 1, 1, count_include_pad=False)
    same(excluded, o.in_onnx("AveragePool", x, kernel_shape=[3], pads=[1, 1]))
    with pytest.raises(TypeError):
        o.in_torch("avg_pool1d", x, 2, divisor_override=3)
    same(fc.avg_pool1d(x, 2, divisor_override=4), [[[0.5, 0.5]]])


def nan_in_max(o: Others) -> None:
    x = np.array([[[1, np.nan, 3, 4, 5, np.nan, np.nan, 1]]], "f4")
    ours = fc.max_pool1d(x, 4, return_indices=True)
    for a, b in zip(ours, o.in_torch("max_pool1d", x, 4, return_indices=True), strict=True):
        same(a, b)
    same(o.in_onnx("MaxPool", x, kernel_shape=[4], strides=[4]), [[[4, 5]]])
    edge = np.array([np.nan, 1, 3, 4, 5, 6, 7, np.nan])
    assert not np.isnan(o.ndimage.maximum_filter1d(edge, 4)).any()
    assert np.isnan(o.ndimage.maximum_filter1d(x[0, 0], 4)).any()


def indices(o: Others) -> None:
    x = np.zeros((1, 2, 2, 4), "f4")
    _, ours = fc.max_pool2d(x, 2, return_indices=True)
    same(ours, o.in_torch("max_pool2d", x, 2, return_indices=True)[1])
    _, theirs = o.in_onnx("MaxPool", x, results=2, kernel_shape=[2, 2], strides=[2, 2])
    same(theirs[0, 1] - ours[0, 1], np.full((1, 2), 8))
    leaf = o.torch.zeros(1, 1, 2, requires_grad=True)
    o.torch.nn.functional.max_pool1d(leaf, 2).sum().backward()
    same(leaf.grad.numpy(), grad.max_pool1d(np.ones((1, 1, 1), "f4"), np.zeros((1, 1, 2), "f4"), 2))


def lp_pool(o: Others) -> None:
    x = np.array([[[-1, 2, -3, -4]]], "f4")
    same(o.in_torch("lp_pool1d", x, 1, 2), [[[1, -7]]])
    same(fc.lp_pool1d(x, 1, 2), [[[3, 7]]])
    same(o.in_onnx("LpPool", x, kernel_shape=[2], strides=[2], p=1), [[[3, 7]]])
    assert np.isnan(o.in_torch("lp_pool1d", x, 3, 2)[0, 0, 1])
    cut = np.array([[[3, 4, 12]]], "f4")
    np.testing.assert_array_almost_equal_nulp(
        fc.lp_pool1d(cut, 2, 2, ceil_mode=True), o.in_torch("lp_pool1d", cut, 2, 2, ceil_mode=True)
    )
    same(o.in_onnx("LpPool", cut, kernel_shape=[2], strides=[2], p=2, ceil_mode=1), [[[5, 12]]])


def adaptive(o: Others) -> None:
    x = whole(1, 2, 7, dtype="f8")
    for size in (1, 3, 7, 9):
        same(fc.adaptive_max_pool1d(x, size), o.in_torch("adaptive_max_pool1d", x, size))
    same(fc.adaptive_avg_pool1d(x, 7), o.in_torch("adaptive_avg_pool1d", x, 7))


def unpool(o: Others) -> None:
    x, i = np.array([[[1, 2]]], "f4"), np.array([[[1, 1]]])
    same(fc.max_unpool1d(x, i, 2), [[[0, 2, 0, 0]]])
    assert o.in_torch("max_unpool1d", x, i, 2)[0, 0, 1] in (1, 2)  # either has been seen
    with pytest.raises(ValueError, match="indices"):
        fc.max_unpool1d(x, i + 9, 2)


def mixed_types(o: Others) -> None:
    x, w = whole(1, 1, 4), whole(1, 1, 2, dtype="f8")
    assert fc.conv1d(x, w).dtype == np.float64
    with pytest.raises(RuntimeError, match="scalar type"):
        o.in_torch("conv1d", x, w)
    with pytest.raises(Exception, match="bound to different types"):
        o.in_onnx("Conv", x, w)
    ints, halves = np.array([1, 2, 4]), np.array([0.5, 0.5, 0.5])
    same(o.ndimage.correlate1d(ints, halves, mode="constant"), [1, 3, 3])
    same(fc.conv1d(ints[None], halves[None, None], padding=1), [[1.5, 3.5, 3]])
    with pytest.raises(RuntimeError, match="float16"):
        o.ndimage.correlate1d(halves.astype("f2"), halves.astype("f2"))


def integers(o: Others) -> None:
    x, w = np.full((1, 1, 3), 127, "i1"), np.full((1, 1, 2), 2, "i1")
    same(fc.conv1d(x, w), [[[508, 508]]])
    same(o.in_torch("conv1d", x, w), np.full((1, 1, 2), -4, "i1"))
    same(o.signal.correlate(x[0, 0], w[0, 0], "valid"), np.full(2, -4, "i1"))
    same(o.in_onnx("ConvInteger", x.view("u1"), w), fc.conv1d(x.view("u1"), w))
    with pytest.raises(Exception, match="Type"):
        o.in_onnx("Conv", x, w)
    large = np.array([2**53 + 1])
    assert fc.conv1d(large[None], np.ones((1, 1, 1), "i8"))[0, 0] == 2**53 + 1
    assert o.ndimage.correlate1d(large, np.ones(1, "i8"))[0] == 2**53


def integer_averages(o: Others) -> None:
    x = np.array([[[1, 2, 4, 255]]])
    same(fc.avg_pool1d(x, 4), [[[65.5]]])
    same(o.in_torch("avg_pool1d", x, 4), [[[65]]])
    with pytest.raises(NotImplementedError):
        o.in_torch("avg_pool1d", x.astype("u1"), 4)


def transposed(o: Others) -> None:
    x, w = whole(1, 2, 4), whole(2, 3, 3)
    ours = fc.conv_transpose1d(x, w, stride=2, padding=1, output_padding=1)
    same(ours, o.in_torch("conv_transpose1d", x, w, stride=2, padding=1, output_padding=1))
    same(ours, o.in_onnx("ConvTranspose", x, w, strides=[2], pads=[1, 1], output_padding=[1]))


def columns(o: Others) -> None:
    volume = np.ones((1, 1, 3, 3, 3), "f4")
    assert fc.unfold(volume, (2, 2, 2)).shape == (1, 8, 8)
    with pytest.raises(RuntimeError):
        o.in_torch("unfold", volume, 2)


def fft_and_nan(o: Others) -> None:
    x, k = np.zeros(100_000), np.ones(5_000)
    x[0] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.isnan(o.signal.correlate(x, k, "same")).all()
    ours = fc.conv1d(x[None, :20_000].astype("f4"), k[None, None, :2_000].astype("f4"), backend="im2col")
    assert np.isnan(ours).sum() == 1


CLAIMS: list[Callable[[Others], None]] = [
    flip, empty_channels, lists, padding_forms, same_padding, padding_modes, padded_zeros, pool_padding, pool_stride,
    ceil_mode, divisors, nan_in_max, indices, lp_pool, adaptive, unpool, mixed_types, integers, integer_averages,
    transposed, columns, fft_and_nan,
]  # fmt: skip


@pytest.mark.oracle
@pytest.mark.parametrize("claim", CLAIMS, ids=[claim.__name__ for claim in CLAIMS])
def test_what_is_said_of_others(others: Others, claim: Callable[[Others], None]) -> None:
    claim(others)
