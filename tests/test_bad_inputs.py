"""Every kind of bad input is refused with words that say which argument, what came and what was expected."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

import fastconv
from fastconv import BackendUnavailable, Unsupported
from fastconv.backends import backends, owner
from fastconv.plan import plan
from fastconv.spec import Op, parse
from fastconv.testing import operands, poisoned

# Untyped on purpose: a type checker would refuse most of the table before it runs.
fc: Any = fastconv
grad: Any = fastconv.grad
ConvSpec: Any = fastconv.ConvSpec
PoolSpec: Any = fastconv.PoolSpec

BACKENDS = [name for name, state in backends().items() if state == "available" and owner(name) == "numpy"]


class DeviceArray:
    """What a CuPy array looks like from outside; nothing of it may ever be read."""

    shape, ndim, dtype = (2, 4, 6, 7), 4, np.dtype("f4")


DeviceArray.__module__ = "cupy"


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
        self.signal = rng.standard_normal((2, 4, 9)).astype("f4")
        self.taps = rng.standard_normal((6, 4, 3)).astype("f4")
        self.bytes = np.full((1, 1, 33026), 255, "u1")  # 33025 products of 255 * 255 still fit an int32
        self.values = np.full((2, 4, 3, 3), 7, "f4")
        self.places = np.full((2, 4, 3, 3), 7, "i8")
        self.memory = np.full(4 * 2 * 9, 7, "i8")
        self.repeated = np.lib.stride_tricks.as_strided(np.zeros(20, "f4"), (2, 6, 4, 5), (0, 0, 20, 4))
        self.device: Any = DeviceArray()


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
    Bad("input structured", lambda a: fc.conv2d(a.x.view([("re", "f2"), ("im", "f2")]), a.w), T, ("input", "void", "float32")),
    Bad("input 4-bit", lambda a: fc.conv2d(a.x.astype(ml_dtypes.int4), a.w), T, ("input", "int4", "int8")),
    Bad("input bytes", lambda a: fc.conv2d(b"abc", a.w), T, ("input", "bytes", "array")),
    Bad("input NumPy scalar", lambda a: fc.conv2d(np.float32(3), a.w), T, ("input", "float32", "array")),
    Bad("weight None", lambda a: fc.conv2d(a.x, None), T, ("weight", "NoneType", "array")),
    Bad("weight masked", lambda a: fc.conv2d(a.x, np.ma.masked_array(a.w)), T, ("weight", "masked", "filled")),
    Bad("weight complex", lambda a: fc.conv2d(a.x, a.w.astype("c16")), T, ("weight", "complex128", "float32")),
    Bad("weight objects", lambda a: fc.conv2d(a.x, a.w.astype(object)), T, ("weight", "object", "float32")),
    Bad("bias masked", lambda a: fc.conv2d(a.x, a.w, np.ma.masked_array(a.b)), T, ("bias", "masked", "filled")),
    Bad("bias complex", lambda a: fc.conv2d(a.x, a.w, a.b.astype("c8")), T, ("bias", "complex64", "float32")),
    Bad("bias bool", lambda a: fc.conv2d(a.x, a.w, a.b > 0), T, ("bias", "bool", "uint8")),
    Bad("halves that do not mix", lambda a: fc.conv2d(a.x.astype("f2"), a.w.astype(ml_dtypes.bfloat16)), T, ("input float16", "weight bfloat16", "common type")),
    Bad("device input", lambda a: fc.conv2d(a.device, a.w), T, ("weight", "numpy array", "input is a cupy", "nothing is copied")),
    Bad("device bias", lambda a: fc.conv2d(a.x, a.w, a.device), T, ("bias", "cupy array", "numpy", "nothing is copied")),
    Bad("device arrays on a host backend", lambda a: fc.max_pool2d(a.device, 2, backend="im2col"), T, ("backend", "'im2col'", "numpy", "got cupy")),
    Bad("device out", lambda a: fc.conv2d(a.x, a.w, out=a.device), T, ("out", "cupy", "numpy")),
    # ranks and shapes
    Bad("input rank 0", lambda a: fc.conv1d(np.array(1.0), a.taps), V, ("input", r"\(\)", "0 axes", "expected 3")),
    Bad("image for conv1d", lambda a: fc.conv1d(a.x, a.taps), V, ("input", "4 axes", "expected 3")),
    Bad("empty kernel axis", lambda a: fc.conv2d(a.x, a.w[..., :0]), V, ("weight", r"\(6, 4, 3, 0\)", "no axis of length 0")),
    Bad("empty bias", lambda a: fc.conv2d(a.x, a.w, a.b[:0]), V, ("bias", r"\(0,\)", r"expected \(6,\)")),
    Bad("conv1d kernel too large", lambda a: fc.conv1d(a.signal[..., :2], a.taps), V, ("kernel_size", "axis 0", "spans 3", "= 2")),
    Bad("kernel too large on one axis", lambda a: fc.conv2d(a.x, a.w, dilation=(1, 4), padding=((9, 9), (0, 1))), V, ("axis 1", "spans 9", r"7 \+ 0 \+ 1 = 8")),
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
    Bad("stride complex", lambda a: fc.conv2d(a.x, a.w, stride=1j), T, ("stride", "1j", "int")),
    Bad("stride bytes", lambda a: fc.conv2d(a.x, a.w, stride=b"12"), T, ("stride", "b'12'", "int")),
    Bad("stride set", lambda a: fc.conv2d(a.x, a.w, stride={1, 2}), T, ("stride", r"\{1, 2\}", "int")),
    Bad("stride empty", lambda a: fc.conv2d(a.x, a.w, stride=()), V, ("stride", "0 entries", "2 of them")),
    Bad("stride nested", lambda a: fc.conv2d(a.x, a.w, stride=((1, 1), 2)), T, ("stride", r"\(1, 1\)", "int")),
    Bad("stride float array", lambda a: fc.conv2d(a.x, a.w, stride=np.array([1.0, 2.0])), T, ("stride", "1.0", "int")),
    Bad("stride float array without axes", lambda a: fc.conv2d(a.x, a.w, stride=np.array(1.0)), T, ("stride", r"array\(1\.\)", "int")),
    Bad("stride beyond 64 bits", lambda a: fc.conv2d(a.x, a.w, stride=10**30), V, ("stride", "got .*1000000000000", "at most 2147483647")),
    Bad("stride overflows in bytes", lambda a: fc.conv2d(a.x, a.w, stride=2**61), V, ("stride", "2305843009213693952", "at most")),
    # dilation and groups
    Bad("dilation negative", lambda a: fc.conv2d(a.x, a.w, dilation=-1), V, ("dilation", "got -1", "at least 1")),
    Bad("dilation bool", lambda a: fc.conv2d(a.x, a.w, dilation=False), T, ("dilation", "got False", "int")),
    Bad("dilation text", lambda a: fc.conv2d(a.x, a.w, dilation="1"), T, ("dilation", "'1'", "int")),
    Bad("dilation None", lambda a: fc.conv2d(a.x, a.w, dilation=None), T, ("dilation", "None", "int")),
    Bad("dilation entries", lambda a: fc.conv2d(a.x, a.w, dilation=(1,)), V, ("dilation", "1 entries", "2 of them")),
    Bad("dilation beyond 64 bits", lambda a: fc.conv2d(a.x, a.w[:, :, :1, :1], dilation=2**70), V, ("dilation", "1180591620717411303424", "at most 2147483647")),
    Bad("groups text", lambda a: fc.conv2d(a.x, a.w, groups="1"), T, ("groups", "'1'", "int")),
    Bad("groups None", lambda a: fc.conv2d(a.x, a.w, groups=None), T, ("groups", "None", "int")),
    Bad("groups pair", lambda a: fc.conv2d(a.x, a.w, groups=(1, 1)), T, ("groups", r"\(1, 1\)", "int")),
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
    Bad("symmetric too far", lambda a: fc.conv2d(a.x, a.w, padding=((0, 7), 0), padding_mode="symmetric"), V, ("padding", r"\(0, 7\)", "at most 6 for an input of 6")),
    Bad("padding text entry", lambda a: fc.conv2d(a.x, a.w, padding=("same", "same")), T, ("padding", "'same'", "int")),
    Bad("padding NaN alone", lambda a: fc.conv2d(a.x, a.w, padding=float("nan")), T, ("padding", "nan", "int")),
    Bad("padding NaN array", lambda a: fc.conv2d(a.x, a.w, padding=np.array([np.nan, 1])), T, ("padding", "nan", "int")),
    Bad("padding infinite", lambda a: fc.conv2d(a.x, a.w, padding=float("inf")), T, ("padding", "inf", "int")),
    Bad("padding negative entry", lambda a: fc.conv2d(a.x, a.w, padding=((0, -1), 0)), V, ("padding", "got -1", "at least 0")),
    Bad("padding case", lambda a: fc.conv2d(a.x, a.w, padding="SAME"), V, ("padding", "'SAME'", "'same_lower'")),
    Bad("padding empty", lambda a: fc.conv2d(a.x, a.w, padding=()), V, ("padding", "0 entries", "2 ints")),
    Bad("padding makes too much", lambda a: fc.conv2d(a.x, a.w, padding=2**61), V, ("output", "4611686018427387908", r"2\*\*63")),
    Bad("padding beyond 64 bits", lambda a: fc.conv1d(a.signal, a.taps, padding=10**30), V, ("output", "shape", r"2\*\*63")),
    Bad("padding mode None", lambda a: fc.conv2d(a.x, a.w, padding=1, padding_mode=None), V, ("padding_mode", "None", "zeros")),
    Bad("padding mode list", lambda a: fc.conv2d(a.x, a.w, padding=1, padding_mode=["zeros"]), V, ("padding_mode", "zeros", "reflect")),
    # common keywords
    Bad("backend numba", lambda a: fc.conv2d(a.x, a.w, backend=next(n for n, s in backends().items() if s != "available")), BackendUnavailable, ("backend", "is not available", "fastconv|install")),
    Bad("backend list", lambda a: fc.conv2d(a.x, a.w, backend=["im2col"]), V, ("backend", r"\['im2col'\]", "im2col")),
    Bad("backend empty", lambda a: fc.conv2d(a.x, a.w, backend=""), V, ("backend", "''", "im2col")),
    Bad("algorithm empty", lambda a: fc.conv2d(a.x, a.w, backend="naive", algorithm=""), V, ("algorithm", "''", "loops")),
    Bad("algorithm number", lambda a: fc.conv2d(a.x, a.w, algorithm=1), T, ("algorithm", "got 1", "name")),
    Bad("algorithm of another op", lambda a: fc.max_pool2d(a.x, 2, backend="im2col", algorithm="fft"), V, ("algorithm", "'fft'", "taps")),
    Bad("precision None", lambda a: fc.conv2d(a.x, a.w, precision=None), V, ("precision", "None", "default")),
    Bad("precision bool", lambda a: fc.conv2d(a.x, a.w, precision=True), V, ("precision", "True", "default")),
    Bad("precision array", lambda a: fc.conv2d(a.x, a.w, precision=np.array(["a", "b"])), V, ("precision", "'a', 'b'", "default")),
    Bad("limit bool", lambda a: fc.conv2d(a.x, a.w, workspace_limit=True), T, ("workspace_limit", "True", "int")),
    Bad("limit text", lambda a: fc.conv2d(a.x, a.w, workspace_limit="1MB"), T, ("workspace_limit", "'1MB'", "int")),
    Bad("limit too small for a gradient", lambda a: grad.conv2d_input(a.x.shape, a.w, a.y, backend="im2col", workspace_limit=10), Unsupported, ("workspace_limit", "got 10", "at least [0-9]+ bytes")),
    Bad("limit too small for a pool", lambda a: fc.max_pool2d(a.x, 2, return_indices=True, backend="im2col", workspace_limit=10), Unsupported, ("workspace_limit", "got 10", "at least [0-9]+ bytes")),
    Bad("keyword of another function", lambda a: fc.conv_transpose2d(a.x, a.wt, padding_mode="reflect"), T, ("padding_mode", "unknown keyword", "backend")),
    Bad("keyword unknown to a gradient", lambda a: grad.avg_pool2d(a.p, a.x, 2, dilation=2), T, ("dilation", "unknown keyword", "backend")),
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
    Bad("out None in a pair", lambda a: fc.max_pool2d(a.x, 2, return_indices=True, out=(a.values, None)), T, ("out", "NoneType", "array")),
    Bad("out tuple for one result", lambda a: fc.conv2d(a.x, a.w, out=(a.out,)), T, ("out", "tuple", "array")),
    Bad("out of three", lambda a: fc.max_pool2d(a.x, 2, return_indices=True, out=(a.values, a.places, a.places)), T, ("out", "tuple of 3", "tuple of two")),
    Bad("out pair swapped", lambda a: fc.max_pool2d(a.x, 2, return_indices=True, out=(a.places, a.values)), T, ("out", "int64", "expected float32 for the output")),
    Bad("out indices of another type", lambda a: fc.max_pool2d(a.x[..., :6], 2, return_indices=True, out=(a.values, a.places.astype("i4"))), T, ("out", "int32", "expected int64 for the indices")),
    Bad("out pair shares memory", lambda a: fc.max_pool2d(a.x[..., :6].astype("f8"), 2, return_indices=True, out=(a.memory.view("f8").reshape(2, 4, 3, 3), a.memory.reshape(2, 4, 3, 3))), V, ("out", "values and indices", "separate")),
    Bad("out shares memory with itself", lambda a: fc.conv2d(a.x, a.w, out=a.repeated), V, ("out", r"strides \(0, 0, 20, 4\)", "do not share")),
    Bad("out masked", lambda a: fc.conv2d(a.x, a.w, out=np.ma.masked_array(a.out)), T, ("out", "masked", "plain")),
    Bad("out wider", lambda a: fc.conv2d(a.u8, a.u8[:1, :, :3, :3], out=np.zeros((2, 1, 4, 5), "i8")), T, ("out", "int64", "expected int32")),
    Bad("out transposed shape", lambda a: fc.conv2d(a.x, a.w, out=a.out.swapaxes(2, 3)), V, ("out", r"\(2, 6, 5, 4\)", r"\(2, 6, 4, 5\)")),
    Bad("out of a gradient", lambda a: grad.conv2d_weight(a.x, a.w.shape, a.y, out=a.out), V, ("out", r"\(2, 6, 4, 5\)", r"\(6, 4, 3, 3\) for the grad_weight")),
    Bad("out of unfold", lambda a: fc.unfold(a.x, 3, out=a.columns[..., :19]), V, ("out", r"\(2, 36, 19\)", r"\(2, 36, 20\) for the columns")),
    # integers
    Bad("int32 sum of one term too many", lambda a: fc.conv1d(a.bytes, a.bytes), V, ("33026 products", "uint8", "2\\*\\*31 - 1")),
    Bad("int32 input gradient", lambda a: grad.conv1d_input((1, 1, 3), np.full((33026, 1, 1), 255, "u1"), np.full((1, 33026, 3), 255, "u1")), V, ("33026 products", "uint8", "int16")),
    Bad("int32 weight gradient", lambda a: grad.conv1d_weight(a.bytes, (1, 1, 1), a.bytes), V, ("33026 products", "uint8", "int16")),
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
    Bad("transposed weight rank", lambda a: fc.conv_transpose2d(a.x, a.wt[0]), V, ("weight", "3 axes", "expected 4")),
    Bad("transposed empty", lambda a: fc.conv_transpose2d(a.x[..., :0], a.wt), V, ("input", r"\(6, 0\)", "at least 1")),
    Bad("transposed stride", lambda a: fc.conv_transpose2d(a.x, a.wt, stride=0), V, ("stride", "got 0", "at least 1")),
    Bad("transposed dilation", lambda a: fc.conv_transpose2d(a.x, a.wt, dilation=1.0), T, ("dilation", "1.0", "int")),
    Bad("output_padding float", lambda a: fc.conv_transpose2d(a.x, a.wt, stride=2, output_padding=1.0), T, ("output_padding", "1.0", "int")),
    Bad("output_padding bool", lambda a: fc.conv_transpose2d(a.x, a.wt, stride=2, output_padding=True), T, ("output_padding", "True", "int")),
    Bad("output_padding entries", lambda a: fc.conv_transpose2d(a.x, a.wt, stride=2, output_padding=(1, 1, 1)), V, ("output_padding", "3 entries", "2 of them")),
    Bad("transposed too large", lambda a: fc.conv_transpose2d(a.x, a.wt, stride=2**30), V, ("input", "5368709123", r"2\*\*63")),
    Bad("transposed dtype", lambda a: fc.conv_transpose2d(a.x > 0, a.wt), T, ("input", "bool", "float32")),
    # pools
    Bad("kernel negative", lambda a: fc.avg_pool2d(a.x, -2), V, ("kernel_size", "got -2", "at least 1")),
    Bad("kernel bool", lambda a: fc.max_pool2d(a.x, True), T, ("kernel_size", "True", "int")),
    Bad("kernel None", lambda a: fc.max_pool2d(a.x, None), T, ("kernel_size", "None", "int")),
    Bad("kernel text", lambda a: fc.lp_pool2d(a.x, 2, "2"), T, ("kernel_size", "'2'", "int")),
    Bad("kernel entries", lambda a: fc.max_pool2d(a.x, (2, 2, 2)), V, ("kernel_size", "3 entries", "2 of them")),
    Bad("pool stride 0", lambda a: fc.max_pool2d(a.x, 2, 0), V, ("stride", "got 0", "at least 1")),
    Bad("pool stride float", lambda a: fc.avg_pool2d(a.x, 2, 2.0), T, ("stride", "2.0", "int")),
    Bad("pool stride huge", lambda a: fc.avg_pool2d(a.x, 2, 2**62), V, ("stride", "4611686018427387904", "at most 2147483647")),
    Bad("pool dilation 0", lambda a: fc.max_pool2d(a.x, 2, dilation=0), V, ("dilation", "got 0", "at least 1")),
    Bad("pool padding negative", lambda a: fc.max_pool2d(a.x, 3, padding=-1), V, ("padding", "got -1", "at least 0")),
    Bad("pool padding name", lambda a: fc.max_pool2d(a.x, 3, padding="full"), V, ("padding", "'full'", "'same'")),
    Bad("pool of a list", lambda a: fc.max_pool2d([[1.0]], 2), T, ("input", "list", "array")),
    Bad("pool masked", lambda a: fc.avg_pool2d(a.masked, 2), T, ("input", "masked", "filled")),
    Bad("pool of objects", lambda a: fc.avg_pool2d(a.objects, 2), T, ("input", "object", "float32")),
    Bad("pool of complex", lambda a: fc.lp_pool2d(a.x.astype("c8"), 2, 2), T, ("input", "complex64", "float32")),
    Bad("pool kernel beyond 64 bits", lambda a: fc.max_pool2d(a.x, 10**30), V, ("kernel_size", "1000000000000", "= 6")),
    Bad("ceil_mode None", lambda a: fc.avg_pool2d(a.x, 2, ceil_mode=None), T, ("ceil_mode", "None", "bool")),
    Bad("count_include_pad int", lambda a: fc.avg_pool2d(a.x, 2, count_include_pad=0), T, ("count_include_pad", "got 0", "bool")),
    Bad("divisor negative", lambda a: fc.avg_pool2d(a.x, 2, divisor_override=-3), V, ("divisor_override", "got -3", "at least 1")),
    Bad("divisor bool", lambda a: fc.avg_pool2d(a.x, 2, divisor_override=True), T, ("divisor_override", "True", "int")),
    Bad("norm negative", lambda a: fc.lp_pool2d(a.x, -2.0, 2), V, ("norm_type", "got -2.0", "above 0")),
    Bad("norm None", lambda a: fc.lp_pool2d(a.x, None, 2), T, ("norm_type", "None", "number")),
    Bad("norm complex", lambda a: fc.lp_pool2d(a.x, 1j, 2), T, ("norm_type", "1j", "number")),
    Bad("norm bool", lambda a: fc.lp_pool2d(a.x, True, 2), T, ("norm_type", "True", "number")),
    Bad("norm beyond floats", lambda a: fc.lp_pool2d(a.x, 10**400, 2), V, ("norm_type", "largest float", "finite")),
    Bad("adaptive negative", lambda a: fc.adaptive_max_pool2d(a.x, (2, -1)), V, ("output_size", "got -1", "at least 1")),
    Bad("adaptive bool", lambda a: fc.adaptive_avg_pool2d(a.x, True), T, ("output_size", "True", "int")),
    Bad("adaptive text", lambda a: fc.adaptive_avg_pool2d(a.x, "22"), T, ("output_size", "'22'", "int")),
    Bad("adaptive bytes", lambda a: fc.adaptive_avg_pool2d(a.x, b"\x02\x03"), T, ("output_size", "x02", "int")),
    Bad("adaptive too large", lambda a: fc.adaptive_avg_pool2d(a.x, 2**40), V, ("output", "1099511627776", r"2\*\*63")),
    Bad("adaptive empty input", lambda a: fc.adaptive_avg_pool2d(a.x[..., :0], 1), V, ("in_size", r"\(6, 0\)", "at least 1")),
    Bad("adaptive return_indices", lambda a: fc.adaptive_max_pool2d(a.x, 2, 1), T, ("return_indices", "got 1", "bool")),
    Bad("adaptive rank", lambda a: fc.adaptive_avg_pool3d(a.signal, 1), V, ("input", "3 axes", "expected 5")),
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
    Bad("unpool indices list", lambda a: fc.max_unpool2d(a.p, a.i.tolist(), 2), T, ("indices", "list", "array")),
    Bad("unpool indices None", lambda a: fc.max_unpool2d(a.p, None, 2), T, ("indices", "None", "array")),
    Bad("unpool indices bool", lambda a: fc.max_unpool2d(a.p, a.i > 3, 2), T, ("indices", "bool", "integer")),
    Bad("unpool index beyond int64", lambda a: fc.max_unpool2d(a.p, a.i.astype("u8") + np.uint64(2**63), 2), V, ("indices", "9223372036854775816", "0 to 35")),
    Bad("unpool batches differ", lambda a: fc.max_unpool2d(a.p[0], a.i, 2), V, ("indices", r"\(2, 4, 3, 3\)", r"expected input's, \(4, 3, 3\)")),
    Bad("unpool size text", lambda a: fc.max_unpool2d(a.p, a.i, 2, output_size="66"), T, ("output_size", "'66'", "int")),
    Bad("unpool size entries", lambda a: fc.max_unpool2d(a.p, a.i, 2, output_size=(6,)), V, ("output_size", "1 entries", "2 of them")),
    Bad("unpool size float", lambda a: fc.max_unpool2d(a.p, a.i, 2, output_size=(6.0, 6)), T, ("output_size", "6.0", "int")),
    Bad("unpool padding name", lambda a: fc.max_unpool2d(a.p, a.i, 2, padding="same"), T, ("padding", "'same'", "int")),
    Bad("unpool too large", lambda a: fc.max_unpool2d(a.p, a.i, 2**33), V, ("shape", "25769803776", r"2\*\*63")),
    Bad("unpool padding leaves nothing", lambda a: fc.max_unpool2d(a.p, a.i, 2, padding=9), V, ("padding", "got 9", r"\(-12, -12\), expected at least 1")),
    Bad("unpool empty", lambda a: fc.max_unpool2d(a.p[..., :0], a.i[..., :0], 2), V, ("input", r"\(3, 0\)", "at least 1")),
    # unfold and fold
    Bad("unfold channels", lambda a: fc.unfold(a.x[:, :0], 3), V, ("input", r"\(2, 0, 6, 7\)", "at least 1 channel")),
    Bad("unfold bool", lambda a: fc.unfold(a.x > 0, 3), T, ("input", "bool", "uint8")),
    Bad("unfold stride", lambda a: fc.unfold(a.x, 3, stride=0), V, ("stride", "got 0", "at least 1")),
    Bad("unfold dilation", lambda a: fc.unfold(a.x, 3, dilation=9), V, ("kernel_size", "spans 19", "= 6")),
    Bad("unfold list", lambda a: fc.unfold([[1.0]], 3), T, ("input", "list", "array")),
    Bad("unfold rank of input", lambda a: fc.unfold(a.x, (3,)), V, ("input", "4 axes", "expected 3")),
    Bad("fold size 0", lambda a: fc.fold(a.columns, (0, 7), 3), V, ("output_size", "got 0", "at least 1")),
    Bad("fold size float", lambda a: fc.fold(a.columns, (6.0, 7), 3), T, ("output_size", "6.0", "int")),
    Bad("fold size entries", lambda a: fc.fold(a.columns, (6, 7, 1, 1), 3), V, ("output_size", "4 entries", "1, 2 or 3")),
    Bad("fold kernel does not fit", lambda a: fc.fold(a.columns[:, :27], (6, 2), 3), V, ("kernel_size", "spans 3", "= 2")),
    Bad("fold kernel product overflows", lambda a: fc.fold(a.columns, (6, 7), 2**32), V, ("input", "got 36 rows", "18446744073709551616")),
    Bad("fold too large", lambda a: fc.fold(a.columns[..., :1], (2**40, 2**40), 3, stride=2**31 - 1), V, ("input|shape", "1099511627776", r"2\*\*63|expected")),
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
    Bad("grad size without batch", lambda a: grad.conv2d_input((4, 6, 7), a.w, a.y), V, ("input_size", r"\(4, 6, 7\)", "4 entries, with a batch")),
    Bad("grad size with batch", lambda a: grad.conv2d_input((1, 4, 6, 7), a.w, a.y[0]), V, ("input_size", r"\(1, 4, 6, 7\)", "3 entries, without a batch")),
    Bad("grad size float", lambda a: grad.conv2d_input((2, 4, 6.0, 7), a.w, a.y), T, ("input_size", "6.0", "int")),
    Bad("grad size text", lambda a: grad.conv2d_input("2467", a.w, a.y), V, ("input_size", "'2467'", "4 entries")),
    Bad("grad size negative", lambda a: grad.conv2d_input((2, 4, -6, 7), a.w, a.y), V, ("input_size", "got -6", "at least 0")),
    Bad("grad size empty", lambda a: grad.conv2d_input((2, 4, 0, 7), a.w, a.y), V, ("in_size", r"\(0, 7\)", "at least 1")),
    Bad("grad groups", lambda a: grad.conv2d_input((2, 16, 6, 7), a.w, a.y, groups=4), V, ("groups", "got 4", "divisor of out_channels, 6")),
    Bad("grad output list", lambda a: grad.conv2d_input((2, 4, 6, 7), a.w, a.y.tolist()), T, ("grad_output", "list", "array")),
    Bad("grad output dtype", lambda a: grad.conv2d_input((2, 4, 6, 7), a.w, a.y > 0), T, ("grad_output", "bool", "float32")),
    Bad("grad output channels", lambda a: grad.conv2d_input((2, 4, 6, 7), a.w, a.y[:, :5]), V, ("grad_output", r"\(2, 5, 4, 5\)", r"expected \(2, 6, 4, 5\)")),
    Bad("grad weight channels", lambda a: grad.conv2d_weight(a.x, (6, 3, 3, 3), a.y), V, ("input", "got 4 channels", "expected 3")),
    Bad("grad weight zero", lambda a: grad.conv2d_weight(a.x, (6, 0, 3, 3), a.y), V, ("weight_size", "got 0", "at least 1")),
    Bad("grad weight number", lambda a: grad.conv2d_weight(a.x, 3, a.y), V, ("input|weight_size", "got", "expected")),
    Bad("grad weight batch axis", lambda a: grad.conv2d_weight(a.x[0], (6, 4, 3, 3), a.y[:1]), V, ("grad_output", r"\(1, 6, 4, 5\)", "batch axis")),
    Bad("grad transposed size", lambda a: grad.conv_transpose2d_input((2, 4, 5, 5), a.wt, a.x[:, :1]), V, ("grad_output", r"\(2, 1, 6, 7\)", "expected")),
    Bad("grad transposed weight", lambda a: grad.conv_transpose2d_weight(a.x, (5, 6, 3, 3), a.y), V, ("input", "got 4 channels", "first entry, 5")),
    Bad("grad max dtype", lambda a: grad.max_pool2d(a.p > 0, a.x, 2), T, ("grad_output", "bool", "float32")),
    Bad("grad integer average", lambda a: grad.avg_pool2d(a.p.astype("i4"), a.u8, 2), T, ("grad_output", "int32", "float64")),
    Bad("grad max index too large", lambda a: grad.max_pool2d(a.p, a.x, 2, indices=a.i + 40), V, ("indices", "to 48", "0 to 41")),
    Bad("grad max index negative", lambda a: grad.max_pool2d(a.p, a.x, 2, indices=a.i - 9), V, ("indices", "from -9", "0 to 41")),
    Bad("grad max indices float", lambda a: grad.max_pool2d(a.p, a.x, 2, indices=a.p), T, ("indices", "float32", "integer")),
    Bad("grad max indices list", lambda a: grad.max_pool2d(a.p, a.x, 2, indices=[1]), T, ("indices", "list", "array")),
    Bad("grad lp norm", lambda a: grad.lp_pool2d(a.p, a.x, 0, 2), V, ("norm_type", "got 0.0", "above 0")),
    Bad("grad adaptive size", lambda a: grad.adaptive_avg_pool2d(a.p, a.x, 2), V, ("grad_output", r"\(2, 4, 3, 3\)", r"expected \(2, 4, 2, 2\)")),
    Bad("grad unpool indices None", lambda a: grad.max_unpool2d(a.x, None), T, ("indices", "NoneType", "array")),
    Bad("grad max indices batch axis", lambda a: grad.max_pool2d(a.p[0], a.x[0], 2, indices=a.i[:1]), V, ("indices", r"\(1, 4, 3, 3\)", r"expected \(4, 3, 3\)")),
    Bad("grad unpool batch axis", lambda a: grad.max_unpool2d(a.x[0], a.i[:1]), V, ("indices", r"\(1, 4, 3, 3\)", "batch axis")),
    Bad("grad unpool index too large", lambda a: grad.max_unpool2d(a.x, a.i * 6), V, ("indices", "to 48", "0 to 41")),
    Bad("grad bias list", lambda a: grad.conv2d_bias([1.0]), T, ("grad_output", "list", "array")),
    Bad("grad bias bool", lambda a: grad.conv2d_bias(a.y > 0), T, ("grad_output", "bool", "float32")),
    Bad("grad bias int32 overflow", lambda a: grad.conv1d_bias(np.broadcast_to(np.int8(127), (1, 1, 2**24 + 1))), V, ("grad_output", "16777217 elements of int8", "int16")),
    # prepared
    Bad("prepared list", lambda a: fc.prepare_conv2d([[1.0]]), T, ("weight", "list", "array")),
    Bad("prepared dtype", lambda a: fc.prepare_conv2d(a.w > 0), T, ("weight", "bool", "float32")),
    Bad("prepared empty", lambda a: fc.prepare_conv2d(a.w[:0]), V, ("weight", r"\(0, 4, 3, 3\)", "no axis of length 0")),
    Bad("prepared padding", lambda a: fc.prepare_conv2d(a.w, padding="full"), V, ("padding", "'full'", "'same'")),
    Bad("prepared padding mode", lambda a: fc.prepare_conv2d(a.w, padding_mode="mirror"), V, ("padding_mode", "'mirror'", "reflect")),
    Bad("prepared dilation", lambda a: fc.prepare_conv2d(a.w, dilation=0), V, ("dilation", "got 0", "at least 1")),
    Bad("prepared backend", lambda a: fc.prepare_conv2d(a.w, backend="torch"), V, ("backend", "'torch'", "im2col")),
    Bad("prepared precision", lambda a: fc.prepare_conv2d(a.w, precision="high"), V, ("precision", "'high'", "highest")),
    Bad("prepared keyword", lambda a: fc.prepare_conv2d(a.w, threads=2), T, ("threads", "unknown keyword", "backend")),
    Bad("prepared with out", lambda a: fc.prepare_conv2d(a.w, out=a.out), T, ("out", "while preparing", "expected it in the call")),
    Bad("prepared transposed groups", lambda a: fc.prepare_conv_transpose2d(a.wt, groups=3), V, ("groups", "got 3", "divisor of in_channels, 4")),
    Bad("prepared transposed bias", lambda a: fc.prepare_conv_transpose2d(a.wt, a.b[:4]), V, ("bias", r"\(4,\)", r"expected \(6,\)")),
    Bad("prepared output_padding", lambda a: fc.prepare_conv_transpose2d(a.wt, output_padding=1), V, ("output_padding", "got 1", "less than stride")),
    Bad("prepared call rank", lambda a: fc.prepare_conv2d(a.w)(a.x[0, 0]), V, ("input", "2 axes", "expected 4")),
    Bad("prepared call list", lambda a: fc.prepare_conv2d(a.w)(a.x.tolist()), T, ("input", "list", "array")),
    Bad("prepared call too small", lambda a: fc.prepare_conv2d(a.w)(a.x[..., :2]), V, ("kernel_size", "spans 3", "= 2")),
    Bad("prepared call out", lambda a: fc.prepare_conv2d(a.w)(a.x, out=a.out[:1]), V, ("out", r"\(1, 6, 4, 5\)", r"expected \(2, 6, 4, 5\)")),
    Bad("prepared algorithm", lambda a: fc.prepare_conv2d(a.w, algorithm="magic"), V, ("algorithm", "'magic'", "auto, .*im2col, .*loops", "conv on any backend")),
    Bad("prepared algorithm of another backend", lambda a: fc.prepare_conv2d(a.w, backend="im2col", algorithm="loops"), V, ("algorithm", "'loops'", "auto, measure, pointwise, im2col, fft", "conv on backend 'im2col'")),
    Bad("prepared transposed algorithm", lambda a: fc.prepare_conv_transpose2d(a.wt, algorithm="magic"), V, ("algorithm", "'magic'", "auto, .*col2im, .*loops", "conv input grad on any backend")),
    Bad("prepared algorithm type", lambda a: fc.prepare_conv2d(a.w, algorithm=None), T, ("algorithm", "got None", "a name, 'auto' or 'measure'")),
    Bad("bias of bools, 8-bit operands", lambda a: fc.conv2d(a.u8, a.w.astype("i1"), a.b > 0), T, ("bias", "bool", "expected one of float64")),
    Bad("prepared bias of bools", lambda a: fc.prepare_conv2d(a.w, a.b > 0), T, ("bias", "bool", "expected one of float64")),
    Bad("prepared float bias, integers", lambda a: fc.prepare_conv2d(a.w.astype("i1"), a.b)(a.u8.astype("i1")), T, ("bias", "float32", "integer type like the operands'")),
    Bad("prepared wide bias, narrow integers", lambda a: fc.prepare_conv2d(a.w.astype("i1"), a.b.astype("i8"))(a.u8), T, ("bias", "int64", "fits the result's, int32")),
    Bad("prepared signed bias, unsigned operands", lambda a: fc.prepare_conv2d(a.w.astype("u2"), a.b.astype("i2"))(a.u8), T, ("bias", "int16", "fits the result's, uint64")),
    Bad("prepared transposed float bias, integers", lambda a: fc.prepare_conv_transpose2d(a.wt.astype("i1"), a.b)(a.u8.astype("i1")), T, ("bias", "float32", "integer type like the operands'")),
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
    Bad("parse fraction", lambda a: fc.parse("n1 c3x8x8 k4x3x3 s1.5"), V, ("problem", "'1.5'", "whole number")),
    Bad("parse pair as stride", lambda a: fc.parse("n1 c3x8x8 k4x3x3 s1:2"), V, ("problem", "'1:2'", "whole number")),
    Bad("parse batch pair", lambda a: fc.parse("n1x2 c3x8x8 k4x3x3"), V, ("problem", "'1x2'", "whole number")),
    Bad("parse norm", lambda a: fc.parse("lp1.2.3 n1 c3x8x8 k2x2"), V, ("problem", "'1.2.3'", "number")),
    Bad("parse two pools", lambda a: fc.parse("max avg n1 c3x8x8 k2x2"), V, ("problem", "max and avg", "expected one")),
    Bad("parse two norms", lambda a: fc.parse("max lp3 n1 c3x8x8 k2x2"), V, ("problem", "max and lp", "expected one")),
    Bad("parse two types", lambda a: fc.parse("n1 c3x8x8 k4x3x3 f32 f64"), V, ("problem", "'f64'", "second time")),
    Bad("parse two modes", lambda a: fc.parse("n1 c3x8x8 k4x3x3 reflect circular"), V, ("problem", "'circular'", "second time")),
    Bad("parse stride 0", lambda a: fc.parse("n1 c3x8x8 k4x3x3 s0"), V, ("problem", r"stride: got \(0, 0\)", "at least 1")),
    Bad("parse stride rank", lambda a: fc.parse("n1 c3x8x8 k4x3x3 s1x1x1"), V, ("stride", r"\(1, 1, 1\)", "2 axes")),
    Bad("parse rank 4", lambda a: fc.parse("n1 c3x8x8x8x8 k4x3x3x3x3"), V, ("in_size", r"\(8, 8, 8, 8\)", "1, 2 or 3")),
    Bad("parse conv with ceil", lambda a: fc.parse("n1 c3x8x8 k4x3x3 ceil"), V, ("problem", "'ceil'", "belongs to a pool")),
    Bad("parse adaptive with stride", lambda a: fc.parse("avg n1 c3x8x8 o2x2 s2"), V, ("stride", r"\(2, 2\)", "none for an adaptive")),
    Bad("parse kernel and output", lambda a: fc.parse("avg n1 c3x8x8 k2x2 o2x2"), V, ("output_size", r"\(2, 2\)", "no kernel")),
    Bad("parse divisor", lambda a: fc.parse("avg n1 c3x8x8 k2x2 divisor-3"), V, ("divisor_override", "got -3", "at least 1")),
    Bad("parse groups", lambda a: fc.parse("n1 c3x8x8 k4x3x3 g2"), V, ("groups", "in_channels is 3 and groups is 2", "divide")),
    Bad("parse empty", lambda a: fc.parse(""), V, ("problem", "''", "needs c<channels>")),
    Bad("parse None", lambda a: fc.parse(None), T, ("problem", "None", "string")),
    Bad("spec list", lambda a: ConvSpec(batch=1, in_channels=1, out_channels=1, in_size=[4], kernel_size=(2,)), T, ("in_size", r"\[4\]", "tuple of ints")),
    Bad("spec float", lambda a: ConvSpec(batch=1, in_channels=1, out_channels=1, in_size=(4.0,), kernel_size=(2,)), T, ("in_size", "4.0", "tuple of ints")),
    Bad("spec kernel float", lambda a: PoolSpec(mode="max", batch=1, channels=1, in_size=(4,), kernel_size=(2.0,)), T, ("kernel_size", "2.0", "tuple of ints")),
    Bad("spec number", lambda a: ConvSpec(batch=1, in_channels=1, out_channels=1, in_size=4, kernel_size=(2,)), T, ("in_size", "got 4", "tuple of ints")),
    Bad("spec batch", lambda a: ConvSpec(batch=-1, in_channels=1, out_channels=1, in_size=(4,), kernel_size=(2,)), V, ("batch", "got -1", "at least 0")),
    Bad("spec batch bool", lambda a: ConvSpec(batch=True, in_channels=1, out_channels=1, in_size=(4,), kernel_size=(2,)), T, ("batch", "got True", "int")),
    Bad("spec channels", lambda a: PoolSpec(mode="max", batch=1, channels=0, in_size=(4,), kernel_size=(2,)), V, ("channels", "channels 0", "at least 1")),
    Bad("spec type", lambda a: ConvSpec(batch=1, in_channels=1, out_channels=1, in_size=(4,), kernel_size=(2,), dtype="float8"), T, ("dtype", "'float8'", "float32")),
    Bad("spec result type", lambda a: ConvSpec(batch=1, in_channels=1, out_channels=1, in_size=(4,), kernel_size=(2,), out_dtype="complex64"), T, ("out_dtype", "'complex64'", "float32")),
    Bad("spec mode", lambda a: PoolSpec(mode="min", batch=1, channels=1, in_size=(4,), kernel_size=(2,)), V, ("mode", "'min'", "max, avg, lp")),
    Bad("explain positional", lambda a: fc.explain("n1 c3x8x8 k4x3x3", "conv input grad"), T, ("args", "'conv input grad'", "op")),
    Bad("explain function with op", lambda a: fc.explain(fc.conv2d, a.x, a.w, op="conv"), T, ("op", "'conv'", "problem")),
    Bad("explain keyword", lambda a: fc.explain("n1 c3x8x8 k4x3x3", threads=2), T, ("threads", "unknown keyword", "backend")),
    Bad("explain a bad call", lambda a: fc.explain(fc.conv2d, a.x[:, :3], a.w), V, ("input", "got 3 channels", "expected 4")),
    Bad("explain op of a pool", lambda a: fc.explain("max n1 c3x8x8 k2x2", op="unpool"), V, ("op", "'unpool'", "pool input grad")),
    Bad("threads negative", lambda a: fc.set_num_threads(-1), V, ("n", "got -1", "at least 1")),
    Bad("threads text", lambda a: fc.set_num_threads("2"), T, ("n", "'2'", "int")),
    Bad("threads None", lambda a: fc.set_num_threads(None), T, ("n", "None", "int")),
    Bad("set_backend None", lambda a: fc.set_backend(None), V, ("name", "None", "im2col")),
    Bad("set_backend cupy", lambda a: fc.set_backend("cupy"), BackendUnavailable, ("name", "'cupy'", "not available")),
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
    assert len(TABLE) >= 80  # the promise; the table holds far more
    assert len({row.name for row in TABLE}) == len(TABLE)


def bits(array: Any) -> tuple[Any, ...]:
    """Everything a call could change of an array."""
    if not isinstance(array, np.ndarray):
        return (id(type(array)),)
    data = array.tolist() if array.dtype == object else array.tobytes()
    mask = array.mask.tobytes() if isinstance(array, np.ma.MaskedArray) else b""
    return data, mask, array.shape, array.strides, array.dtype, array.flags.writeable


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_refused_in_words_and_nothing_changed(row: Bad, backend: str) -> None:
    """The right exception, in words that name the argument, what came and what was expected."""
    arrays = Arrays()
    before = {name: bits(array) for name, array in vars(arrays).items()}
    with fc.use_backend(backend):
        settings = fc.get_backend(), fc.get_num_threads()
        with pytest.raises(row.error) as caught:
            row.call(arrays)
        assert (fc.get_backend(), fc.get_num_threads()) == settings
    assert type(caught.value) is row.error
    assert len(row.words) >= 3, "say which argument, what came and what was expected"
    for words in row.words:
        assert re.search(words, str(caught.value)), f"{words!r} is not in: {caught.value}"
    assert {name: bits(array) for name, array in vars(arrays).items()} == before


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", [Op.POOL_INPUT_GRAD, Op.UNPOOL, Op.UNPOOL_INPUT_GRAD])
@pytest.mark.parametrize("index", [-1, 42, -(2**63), 2**63 - 1])
def test_a_plan_refuses_indices_outside_their_plane(op: Op, index: int, backend: str) -> None:
    """Wherever such an index stands; the functions refuse them before there is a plan."""
    made = plan(parse("max n2 c3x6x7 k2x2 s2 p0 indices f32"), op, backend)
    given = operands(made.spec, op)
    out = poisoned(made.spec.shapes(op)[-1])
    kept = out.copy()
    for at in (0, 11, -1):
        indices = given[1].copy()
        indices.flat[at] = index
        with pytest.raises(
            ValueError, match=rf"indices: got values from .*{index}.*, expected 0 to 41 for planes"
        ):
            made(given[0], indices, out=out)
        np.testing.assert_array_equal(out, kept)


def test_the_same_call_works_after_a_refusal() -> None:
    """A refusal leaves no trace: neither in the cache of plans nor in what explain() listens to."""
    a = Arrays()
    expected = fc.conv2d(a.x, a.w)
    refusals: list[Callable[[], Any]] = [
        lambda: fc.conv2d(a.x, a.w, workspace_limit=-1),
        lambda: fc.explain(fc.conv2d, a.x, a.w, stride=0),
        lambda: fc.conv2d(a.x, a.w, out=a.read_only),
    ]
    for call in refusals:
        with pytest.raises(ValueError):
            call()
        np.testing.assert_array_equal(fc.conv2d(a.x, a.w), expected)


def test_every_refusal_is_a_value_or_type_error() -> None:
    """Errors: ValueError or TypeError, or a subclass; an unavailable backend is the machine's, not the call's."""
    assert issubclass(Unsupported, ValueError)
    assert issubclass(BackendUnavailable, RuntimeError)
    assert {row.error for row in TABLE} <= {ValueError, TypeError, Unsupported, BackendUnavailable}
