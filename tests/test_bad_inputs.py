"""Every kind of bad input is refused with words that say which argument, what came and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastconv
from fastconv import BackendUnavailable, Unsupported

# Untyped on purpose: a type checker would refuse most of the table before it runs.
fc: Any = fastconv
grad: Any = fastconv.grad


class Arrays:
    """Fresh operands for one row of the table."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.x = rng.standard_normal((2, 4, 6, 7)).astype("f4")
        self.w = rng.standard_normal((6, 4, 3, 3)).astype("f4")
        self.wt = rng.standard_normal((4, 6, 3, 3)).astype("f4")
        self.b = rng.standard_normal(6).astype("f4")
        self.y = rng.standard_normal((2, 6, 4, 5)).astype("f4")
        self.p = rng.standard_normal((2, 4, 3, 3)).astype("f4")
        self.i = np.tile(np.arange(9).reshape(3, 3), (2, 4, 1, 1))
        self.columns = rng.standard_normal((2, 36, 20)).astype("f4")
        self.u8 = rng.integers(0, 9, (2, 4, 6, 7)).astype("u1")
        self.out = np.full((2, 6, 4, 5), 7, "f4")
        self.read_only = np.zeros((2, 6, 4, 5), "f4")
        self.read_only.flags.writeable = False
        self.masked = np.ma.masked_array(np.zeros((1, 4, 6, 7), "f4"))
        self.objects = np.full((2, 4, 6, 7), None, dtype=object)
        self.texts = np.full((2, 4, 6, 7), "a")


class Bad(NamedTuple):
    name: str
    call: Callable[[Arrays], Any]
    error: type[Exception]
    words: tuple[str, ...]


V, T = ValueError, TypeError

TABLE = [
    # arrays
    Bad("input list", lambda a: fc.conv2d(a.x.tolist(), a.w), T, ("input", "list", "array")),
    Bad("input None", lambda a: fc.conv2d(None, a.w), T, ("input", "NoneType", "array")),
    Bad("input scalar", lambda a: fc.conv2d(3.0, a.w), T, ("input", "float", "array")),
    Bad("input masked", lambda a: fc.conv2d(a.masked, a.w), T, ("input", "masked", "filled")),
    Bad("input objects", lambda a: fc.conv2d(a.objects, a.w), T, ("input", "object", "float32")),
    Bad("input texts", lambda a: fc.conv2d(a.texts, a.w), T, ("input", "str", "float32")),
    Bad("input bool", lambda a: fc.conv2d(a.x > 0, a.w), T, ("input", "bool", "uint8")),
    Bad("input complex", lambda a: fc.conv2d(a.x.astype("c8"), a.w), T, ("input", "complex64", "float32")),
    Bad("input dates", lambda a: fc.conv2d(a.x.astype("M8[s]"), a.w), T, ("input", "datetime64", "float32")),
    Bad("input long double", lambda a: fc.conv2d(a.x.astype("g"), a.w), T, ("input", "longdouble|float128", "float64")),
    Bad("weight list", lambda a: fc.conv2d(a.x, a.w.tolist()), T, ("weight", "list", "array")),
    Bad("weight bool", lambda a: fc.conv2d(a.x, a.w > 0), T, ("weight", "bool", "float32")),
    Bad("bias list", lambda a: fc.conv2d(a.x, a.w, [1.0] * 6), T, ("bias", "list", "array")),
    Bad("bias float", lambda a: fc.conv2d(a.x, a.w, 1.0), T, ("bias", "float", "array")),
    Bad("int64 with uint64", lambda a: fc.conv2d(a.x.astype("i8"), a.w.astype("u8")), T, ("input int64", "weight uint64", "cast")),
    # ranks and shapes
    Bad("input rank 2", lambda a: fc.conv2d(a.x[0, 0], a.w), V, ("input", r"\(6, 7\)", "expected 4")),
    Bad("input rank 5", lambda a: fc.conv2d(a.x[None], a.w), V, ("input", "5 axes", "expected 4")),
    Bad("weight rank 3", lambda a: fc.conv2d(a.x, a.w[0]), V, ("weight", "3 axes", "expected 4")),
    Bad("weight rank for conv1d", lambda a: fc.conv1d(a.x[0], a.w), V, ("weight", "4 axes", "expected 3")),
    Bad("conv3d of images", lambda a: fc.conv3d(a.x, a.w), V, ("weight", "4 axes", "expected 5")),
    Bad("channels", lambda a: fc.conv2d(a.x[:, :3], a.w), V, ("input", "got 3 channels", "expected 4")),
    Bad("channels with groups", lambda a: fc.conv2d(a.x, a.w, groups=2), V, ("input", "got 4 channels", "expected 8")),
    Bad("bias shape", lambda a: fc.conv2d(a.x, a.w, a.b[:5]), V, ("bias", r"\(5,\)", r"expected \(6,\)")),
    Bad("bias rank", lambda a: fc.conv2d(a.x, a.w, a.b[None]), V, ("bias", r"\(1, 6\)", r"expected \(6,\)")),
    Bad("empty height", lambda a: fc.conv2d(a.x[:, :, :0], a.w), V, ("in_size", r"\(0, 7\)", "at least 1")),
    Bad("empty channels", lambda a: fc.conv2d(a.x[:, :0], a.w[:, :0]), V, ("weight", r"\(6, 0, 3, 3\)", "no axis of length 0")),
    Bad("empty weight", lambda a: fc.conv2d(a.x, a.w[:0]), V, ("weight", r"\(0, 4, 3, 3\)", "no axis of length 0")),
    Bad("kernel too large", lambda a: fc.conv2d(a.x[..., :2], a.w), V, ("kernel_size", "spans 3", "padded input.* = 2")),
    Bad("dilated kernel too large", lambda a: fc.conv2d(a.x, a.w, dilation=3), V, ("kernel_size", "spans 7", "= 6")),
    # stride
    Bad("stride 0", lambda a: fc.conv2d(a.x, a.w, stride=0), V, ("stride", "got 0", "at least 1")),
    Bad("stride negative", lambda a: fc.conv2d(a.x, a.w, stride=-2), V, ("stride", "got -2", "at least 1")),
    Bad("stride bool", lambda a: fc.conv2d(a.x, a.w, stride=True), T, ("stride", "got True", "int")),
    Bad("stride float", lambda a: fc.conv2d(a.x, a.w, stride=1.0), T, ("stride", "got 1.0", "int")),
    Bad("stride NaN", lambda a: fc.conv2d(a.x, a.w, stride=float("nan")), T, ("stride", "nan", "int")),
    Bad("stride text", lambda a: fc.conv2d(a.x, a.w, stride="2"), T, ("stride", "'2'", "int")),
    Bad("stride None", lambda a: fc.conv2d(a.x, a.w, stride=None), T, ("stride", "None", "int")),
    Bad("stride three entries", lambda a: fc.conv2d(a.x, a.w, stride=(1, 1, 1)), V, ("stride", "3 entries", "2 of them")),
    Bad("stride one entry", lambda a: fc.conv2d(a.x, a.w, stride=(2,)), V, ("stride", "1 entries", "2 of them")),
    Bad("stride entry 0", lambda a: fc.conv2d(a.x, a.w, stride=(1, 0)), V, ("stride", "got 0", "at least 1")),
    Bad("stride numpy bool", lambda a: fc.conv2d(a.x, a.w, stride=np.True_), T, ("stride", "True", "int")),
    # dilation and groups
    Bad("dilation 0", lambda a: fc.conv2d(a.x, a.w, dilation=0), V, ("dilation", "got 0", "at least 1")),
    Bad("dilation float", lambda a: fc.conv2d(a.x, a.w, dilation=1.5), T, ("dilation", "1.5", "int")),
    Bad("groups 0", lambda a: fc.conv2d(a.x, a.w, groups=0), V, ("groups", "got 0", "at least 1")),
    Bad("groups negative", lambda a: fc.conv2d(a.x, a.w, groups=-1), V, ("groups", "got -1", "at least 1")),
    Bad("groups float", lambda a: fc.conv2d(a.x, a.w, groups=2.0), T, ("groups", "2.0", "int")),
    Bad("groups bool", lambda a: fc.conv2d(a.x, a.w, groups=True), T, ("groups", "True", "int")),
    Bad("groups does not divide", lambda a: fc.conv2d(a.x, a.w, groups=4), V, ("groups", "got 4", "divisor of out_channels, 6")),
    # padding
    Bad("padding negative", lambda a: fc.conv2d(a.x, a.w, padding=-1), V, ("padding", "got -1", "at least 0")),
    Bad("padding float", lambda a: fc.conv2d(a.x, a.w, padding=0.5), T, ("padding", "0.5", "int")),
    Bad("padding NaN", lambda a: fc.conv2d(a.x, a.w, padding=(float("nan"), 1)), T, ("padding", "nan", "int")),
    Bad("padding bool", lambda a: fc.conv2d(a.x, a.w, padding=True), T, ("padding", "True", "int")),
    Bad("padding None", lambda a: fc.conv2d(a.x, a.w, padding=None), T, ("padding", "None", "int")),
    Bad("padding name", lambda a: fc.conv2d(a.x, a.w, padding="full"), V, ("padding", "'full'", "'same'")),
    Bad("padding entries", lambda a: fc.conv2d(a.x, a.w, padding=(1, 1, 1, 1)), V, ("padding", "4 entries", "2 ints")),
    Bad("padding triple", lambda a: fc.conv2d(a.x, a.w, padding=((1, 1, 1), 0)), V, ("padding", r"\(1, 1, 1\)", "pair")),
    Bad("padding mode", lambda a: fc.conv2d(a.x, a.w, padding=1, padding_mode="mirror"), V, ("padding_mode", "'mirror'", "reflect")),
    Bad("padding mode type", lambda a: fc.conv2d(a.x, a.w, padding=1, padding_mode=3), V, ("padding_mode", "3", "zeros")),
    Bad("reflect too far", lambda a: fc.conv2d(a.x, a.w, padding=6, padding_mode="reflect"), V, ("padding", r"\(6, 6\)", "at most 5")),
    Bad("circular too far", lambda a: fc.conv2d(a.x, a.w, padding=8, padding_mode="circular"), V, ("padding", r"\(8, 8\)", "at most 6")),
    # common keywords
    Bad("backend unknown", lambda a: fc.conv2d(a.x, a.w, backend="torch"), V, ("backend", "'torch'", "im2col")),
    Bad("backend type", lambda a: fc.conv2d(a.x, a.w, backend=3), V, ("backend", "3", "im2col")),
    Bad("backend cupy", lambda a: fc.conv2d(a.x, a.w, backend="cupy"), BackendUnavailable, ("backend", "'cupy'", "not")),
    Bad("algorithm unknown", lambda a: fc.conv2d(a.x, a.w, backend="im2col", algorithm="magic"), V, ("algorithm", "'magic'", "pointwise")),
    Bad("algorithm type", lambda a: fc.conv2d(a.x, a.w, algorithm=None), T, ("algorithm", "None", "name")),
    Bad("algorithm refuses", lambda a: fc.conv2d(a.x, a.w, backend="im2col", algorithm="pointwise"), Unsupported, ("pointwise", "3x3", "needs 1")),
    Bad("precision", lambda a: fc.conv2d(a.x, a.w, precision="high"), V, ("precision", "'high'", "highest")),
    Bad("precision against algorithm", lambda a: fc.conv2d(a.x, a.w, backend="im2col", algorithm="fft", precision="highest"), Unsupported, ("fft", "transform", "highest")),
    Bad("fft of integers", lambda a: fc.conv2d(a.u8, a.u8[:1, :, :3, :3], backend="im2col", algorithm="fft"), Unsupported, ("fft", "uint8", "float")),
    Bad("limit negative", lambda a: fc.conv2d(a.x, a.w, workspace_limit=-1), V, ("workspace_limit", "got -1", "at least 0")),
    Bad("limit float", lambda a: fc.conv2d(a.x, a.w, workspace_limit=1e6), T, ("workspace_limit", "1000000.0", "int")),
    Bad("limit too small", lambda a: fc.conv2d(a.x, a.w, backend="im2col", workspace_limit=10), Unsupported, ("workspace_limit", "got 10", "at least [0-9]+ bytes")),
    Bad("keyword unknown", lambda a: fc.conv2d(a.x, a.w, threads=2), T, ("threads", "unknown keyword", "backend")),
    # out
    Bad("out list", lambda a: fc.conv2d(a.x, a.w, out=[]), T, ("out", "list", "array")),
    Bad("out shape", lambda a: fc.conv2d(a.x, a.w, out=a.out[:1]), V, ("out", r"\(1, 6, 4, 5\)", r"expected \(2, 6, 4, 5\)")),
    Bad("out dtype", lambda a: fc.conv2d(a.x, a.w, out=a.out.astype("f8")), T, ("out", "float64", "expected float32")),
    Bad("out narrower", lambda a: fc.conv2d(a.x.astype("f8"), a.w, out=a.out), T, ("out", "float32", "expected float64")),
    Bad("out read-only", lambda a: fc.conv2d(a.x, a.w, out=a.read_only), V, ("out", "read-only", "written")),
    Bad("out for indices", lambda a: fc.max_pool2d(a.x, 2, return_indices=True, out=a.p), T, ("out", "ndarray", "tuple of two")),
    Bad("out unbatched", lambda a: fc.conv2d(a.x[0], a.w, out=a.out), V, ("out", r"\(2, 6, 4, 5\)", r"expected \(6, 4, 5\)")),
    # integers
    Bad("int32 overflow", lambda a: fc.conv2d(np.full((1, 1, 200, 200), 255, "u1"), np.full((1, 1, 200, 200), 255, "u1")), V, ("40000 products", "2\\*\\*31 - 1", "int16")),
    Bad("float bias of integers", lambda a: fc.conv2d(a.u8, a.u8[:1, :, :3, :3], np.zeros(1)), T, ("bias", "float64", "integer")),
    Bad("wide bias of integers", lambda a: fc.conv2d(a.u8, a.u8[:1, :, :3, :3], np.zeros(1, "i8")), T, ("bias", "int64", "int32")),
    # transposed convolution
    Bad("transposed channels", lambda a: fc.conv_transpose2d(a.x, a.w), V, ("input", "got 4 channels", "expected 6")),
    Bad("transposed name", lambda a: fc.conv_transpose2d(a.x, a.wt, padding="same"), V, ("padding", "'same'", "numbers")),
    Bad("output_padding large", lambda a: fc.conv_transpose2d(a.x, a.wt, stride=2, output_padding=2), V, ("output_padding", "got 2", "less than stride")),
    Bad("output_padding negative", lambda a: fc.conv_transpose2d(a.x, a.wt, output_padding=-1), V, ("output_padding", "got -1", "at least 0")),
    Bad("transposed groups", lambda a: fc.conv_transpose2d(a.x, a.wt, groups=3), V, ("groups", "got 3", "divisor of in_channels, 4")),
    Bad("nothing left", lambda a: fc.conv_transpose2d(a.x, a.wt, padding=9), V, ("padding", "output of size", "at least 1")),
    Bad("transposed bias", lambda a: fc.conv_transpose2d(a.x, a.wt, a.b[:4]), V, ("bias", r"\(4,\)", r"expected \(6,\)")),
    # pools
    Bad("kernel 0", lambda a: fc.max_pool2d(a.x, 0), V, ("kernel_size", "got 0", "at least 1")),
    Bad("kernel float", lambda a: fc.max_pool2d(a.x, 2.0), T, ("kernel_size", "2.0", "int")),
    Bad("pool kernel too large", lambda a: fc.avg_pool2d(a.x, 8), V, ("kernel_size", "spans 8", "= 6")),
    Bad("pool padding", lambda a: fc.max_pool2d(a.x, 2, padding=2), V, ("padding", r"\(2, 2\)", "0 to 1")),
    Bad("pool empty window", lambda a: fc.max_pool1d(a.x[0, :, :1, 0], 2, padding=2, dilation=4), V, ("padding", r"\(2, 2\)", "without any input element")),
    Bad("ceil_mode int", lambda a: fc.max_pool2d(a.x, 2, ceil_mode=1), T, ("ceil_mode", "got 1", "bool")),
    Bad("return_indices text", lambda a: fc.max_pool2d(a.x, 2, return_indices="yes"), T, ("return_indices", "'yes'", "bool")),
    Bad("divisor 0", lambda a: fc.avg_pool2d(a.x, 2, divisor_override=0), V, ("divisor_override", "got 0", "at least 1")),
    Bad("divisor float", lambda a: fc.avg_pool2d(a.x, 2, divisor_override=2.5), T, ("divisor_override", "2.5", "int")),
    Bad("pool of bool", lambda a: fc.max_pool2d(a.x > 0, 2), T, ("input", "bool", "uint8")),
    Bad("pool rank", lambda a: fc.max_pool2d(a.x[0, 0], 2), V, ("input", "2 axes", "expected 4")),
    Bad("pool empty", lambda a: fc.max_pool2d(a.x[:, :, :0], 2), V, ("in_size", r"\(0, 7\)", "at least 1")),
    Bad("pool no channels", lambda a: fc.max_pool2d(a.x[:, :0], 2), V, ("input", "channels 0", "at least 1")),
    Bad("norm 0", lambda a: fc.lp_pool2d(a.x, 0, 2), V, ("norm_type", "got 0.0", "above 0")),
    Bad("norm infinite", lambda a: fc.lp_pool2d(a.x, float("inf"), 2), V, ("norm_type", "inf", "finite")),
    Bad("norm NaN", lambda a: fc.lp_pool2d(a.x, float("nan"), 2), V, ("norm_type", "nan", "finite")),
    Bad("norm text", lambda a: fc.lp_pool2d(a.x, "2", 2), T, ("norm_type", "'2'", "number")),
    Bad("adaptive 0", lambda a: fc.adaptive_avg_pool2d(a.x, 0), V, ("output_size", "got 0", "at least 1")),
    Bad("adaptive entries", lambda a: fc.adaptive_max_pool2d(a.x, (1, 2, 3)), V, ("output_size", "3 entries", "2 of them")),
    Bad("adaptive float", lambda a: fc.adaptive_avg_pool2d(a.x, 1.5), T, ("output_size", "1.5", "int")),
    # unpool
    Bad("unpool indices shape", lambda a: fc.max_unpool2d(a.p, a.i[:1], 2), V, ("indices", r"\(1, 4, 3, 3\)", r"\(2, 4, 3, 3\)")),
    Bad("unpool indices float", lambda a: fc.max_unpool2d(a.p, a.p, 2), T, ("indices", "float32", "integer")),
    Bad("unpool index too large", lambda a: fc.max_unpool2d(a.p, a.i * 5, 2), V, ("indices", "to 40", "0 to 35")),
    Bad("unpool index negative", lambda a: fc.max_unpool2d(a.p, a.i - 1, 2), V, ("indices", "from -1", "0 to 35")),
    Bad("unpool size", lambda a: fc.max_unpool2d(a.p, a.i, 2, output_size=(9, 9)), V, ("output_size", r"\(9, 9\)", "within one stride")),
    # unfold and fold
    Bad("unfold kernel", lambda a: fc.unfold(a.x, 9), V, ("kernel_size", "spans 9", "= 6")),
    Bad("unfold rank", lambda a: fc.unfold(a.x, (1, 1, 1, 1)), V, ("kernel_size", "4 entries", "1, 2 or 3")),
    Bad("fold rows", lambda a: fc.fold(a.columns[:, :35], (6, 7), 3), V, ("input", "got 35 rows", "multiple of .* 9")),
    Bad("fold columns", lambda a: fc.fold(a.columns[..., :19], (6, 7), 3), V, ("input", "got 19 columns", "expected 20")),
    Bad("fold rank", lambda a: fc.fold(a.x, (6, 7), 3), V, ("input", r"\(2, 4, 6, 7\)", "L")),
    # gradients
    Bad("grad size", lambda a: grad.conv2d_input((2, 4, 9, 9), a.w, a.y), V, ("grad_output", r"\(2, 6, 4, 5\)", r"expected \(2, 6, 7, 7\)")),
    Bad("grad channels", lambda a: grad.conv2d_input((2, 5, 6, 7), a.w, a.y), V, ("input_size", "got 5 channels", "expected 4")),
    Bad("grad batch", lambda a: grad.conv2d_input((3, 4, 6, 7), a.w, a.y), V, ("input_size", "batch of 3", "2")),
    Bad("grad size type", lambda a: grad.conv2d_input(7, a.w, a.y), V, ("input_size", "got 7", "shape of 4 entries")),
    Bad("grad weight size", lambda a: grad.conv2d_weight(a.x, (6, 4, 3), a.y), V, ("weight_size", "3 entries", "4 of them")),
    Bad("grad weight shape", lambda a: grad.conv2d_weight(a.x, (6, 4, 2, 2), a.y), V, ("grad_output", r"\(2, 6, 4, 5\)", r"expected \(2, 6, 5, 6\)")),
    Bad("grad batches differ", lambda a: grad.conv2d_weight(a.x[:1], (6, 4, 3, 3), a.y), V, ("grad_output", r"\(2, 6, 4, 5\)", r"expected \(1, 6, 4, 5\)")),
    Bad("grad pool shape", lambda a: grad.max_pool2d(a.y, a.x, 2), V, ("grad_output", r"\(2, 6, 4, 5\)", r"expected \(2, 4, 3, 3\)")),
    Bad("grad pool list", lambda a: grad.avg_pool2d(a.p.tolist(), a.x, 2), T, ("grad_output", "list", "array")),
    Bad("grad pool batch", lambda a: grad.avg_pool2d(a.p[0], a.x, 2), V, ("grad_output", r"\(4, 3, 3\)", "batch axis")),
    Bad("grad pool indices", lambda a: grad.max_pool2d(a.p, a.x, 2, indices=a.i[..., :2]), V, ("indices", r"\(2, 4, 3, 2\)", r"\(2, 4, 3, 3\)")),
    Bad("grad bias rank", lambda a: grad.conv2d_bias(a.b), V, ("grad_output", "1 axes", "expected 4")),
    Bad("grad unpool", lambda a: grad.max_unpool2d(a.x, a.i[:1]), V, ("indices", r"\(1, 4, 3, 3\)", "expected")),
    # prepared
    Bad("prepared weight", lambda a: fc.prepare_conv2d(a.w[0]), V, ("weight", "3 axes", "expected 4")),
    Bad("prepared bias", lambda a: fc.prepare_conv2d(a.w, a.b[:3]), V, ("bias", r"\(3,\)", r"expected \(6,\)")),
    Bad("prepared groups", lambda a: fc.prepare_conv2d(a.w, groups=5), V, ("groups", "got 5", "divisor of out_channels, 6")),
    Bad("prepared stride", lambda a: fc.prepare_conv2d(a.w, stride=0), V, ("stride", "got 0", "at least 1")),
    Bad("prepared call", lambda a: fc.prepare_conv2d(a.w)(a.x[:, :3]), V, ("input", "got 3 channels", "expected 4")),
    # problems and settings
    Bad("parse word", lambda a: fc.parse("n1 c3x8x8 k4x3x3 q7"), V, ("problem", "'q7'", "cannot read")),
    Bad("parse missing", lambda a: fc.parse("n1 c3x8x8"), V, ("problem", "c3x8x8", "needs .*k<kernel>")),
    Bad("parse twice", lambda a: fc.parse("n1 n2 c3x8x8 k4x3x3"), V, ("problem", "'n2'", "second time")),
    Bad("parse type", lambda a: fc.parse(3), T, ("problem", "got 3", "string")),
    Bad("parse rank", lambda a: fc.parse("n1 c3x8x8 k4x3"), V, ("kernel_size", r"\(3,\)", "2 axes")),
    Bad("parse pool groups", lambda a: fc.parse("max n1 c3x8x8 k2x2 g3"), V, ("problem", "g3", "no groups")),
    Bad("parse huge", lambda a: fc.parse("n1000000000 c1000x100000x100000 k1x1x1"), V, ("input", "1000000000", r"2\*\*63")),
    Bad("explain op", lambda a: fc.explain("n1 c3x8x8 k4x3x3", op="pool"), V, ("op", "'pool'", "conv")),
    Bad("explain type", lambda a: fc.explain(3), T, ("what", "got 3", "problem string")),
    Bad("explain other function", lambda a: fc.explain(len, "abc"), V, ("what", "len", "function of fastconv")),
    Bad("threads 0", lambda a: fc.set_num_threads(0), V, ("n", "got 0", "at least 1")),
    Bad("threads float", lambda a: fc.set_num_threads(2.0), T, ("n", "2.0", "int")),
    Bad("threads bool", lambda a: fc.set_num_threads(True), T, ("n", "True", "int")),
    Bad("set_backend", lambda a: fc.set_backend("gpu"), V, ("name", "'gpu'", "im2col")),
    Bad("use_backend", lambda a: fc.use_backend("gpu").__enter__(), V, ("name", "'gpu'", "im2col")),
]  # fmt: skip


def test_the_table_is_long_enough() -> None:
    assert len(TABLE) >= 80
    assert len({row.name for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_refused_in_words_and_nothing_changed(row: Bad) -> None:
    arrays, same = Arrays(), Arrays()
    settings = fc.get_backend(), fc.get_num_threads()
    with pytest.raises(row.error) as caught:
        row.call(arrays)
    assert type(caught.value) is row.error
    for words in row.words:
        assert _found(words, str(caught.value)), f"{words!r} is not in: {caught.value}"
    for name, array in vars(same).items():
        assert np.array_equal(vars(arrays)[name], array), f"{name} was changed"
    assert (fc.get_backend(), fc.get_num_threads()) == settings


def _found(words: str, message: str) -> bool:
    import re

    return re.search(words, message) is not None
