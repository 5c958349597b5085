"""What is compared: real photographs, real digits, and the layers of well-known networks.

A :class:`Case` is a spec with a name and the arrays it runs on. The default workload takes scikit-learn's
photograph of a temple through banks of edge, blur and Gabor filters and through the first layers of VGG16
and AlexNet, and its scanned digits through SimpleConvNet's and LeNet's layers. Weights of network layers are
He-normal from a fixed seed: no trained weights ship with fastconv, and speed does not depend on them.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

from fastconv.api import conv2d
from fastconv.nn.data import enlarged
from fastconv.spec import DTYPES, ConvSpec, Op, PoolSpec, Spec, parse
from fastconv.testing import PROBLEMS, numpy_dtype, operands

Array = Any

NETWORKS = tuple(name for name in PROBLEMS if name != "edges")


@dataclass(frozen=True, slots=True)
class Case:
    """One problem of a workload.

    Attributes
    ----------
    name : str
        For people: where the problem comes from.
    spec : Spec
    op : Op
    arrays : tuple of array
        Operands in call order; empty for random ones.
    """

    name: str
    spec: Spec
    op: Op
    arrays: tuple[Array, ...] = field(default=(), repr=False)

    def operands(self) -> tuple[Array, ...]:
        """The arrays this case runs on."""
        return self.arrays or operands(self.spec, self.op)


def default() -> list[Case]:
    """Photograph and digits, filter banks and first layers, and their pools."""
    return [*photograph(), *digits()]


def named(workload: str) -> list[Case]:
    """Every distinct convolution and pool of a network, on random numbers."""
    if workload not in NETWORKS:
        raise ValueError(f"workload: got {workload!r}, expected one of {', '.join(NETWORKS)}")
    return [_random(f"{workload} {number}", text) for number, text in enumerate(PROBLEMS[workload], 1)]


def problems(texts: Iterable[str]) -> list[Case]:
    """The problems of these strings, on random numbers."""
    return [_random(f"problem {number}", text) for number, text in enumerate(texts, 1)]


def _random(name: str, text: str) -> Case:
    spec = parse(text)
    return Case(name, spec, spec.ops[0])


def with_gradients(cases: Iterable[Case]) -> list[Case]:
    """The cases, each followed by its gradients (on random grad_outputs)."""
    made = []
    for case in cases:
        made.append(case)
        gradients = [op for op in case.spec.ops if "grad" in op.value and op is not Op.UNPOOL_INPUT_GRAD]
        made += [Case(case.name, case.spec, op) for op in gradients]
    return made


# ---------------------------------------------------------------------------- pictures


@cache
def _china() -> Array:
    """The photograph, (3, 427, 640) from 0 to 1."""
    from sklearn.datasets import load_sample_image

    return np.ascontiguousarray(load_sample_image("china.jpg").transpose(2, 0, 1), dtype="float32") / 255


def _crop(size: int = 224) -> Array:
    """The middle of the photograph, standardised by channel as image networks expect it."""
    image = _china()
    top, left = (image.shape[1] - size) // 2, (image.shape[2] - size) // 2
    crop = image[:, top : top + size, left : left + size]
    mean, std = crop.mean((1, 2), keepdims=True), crop.std((1, 2), keepdims=True)
    return np.ascontiguousarray((crop - mean) / std)[None]


def edge_bank() -> Array:
    """Sobel in eight compass directions, (8, 1, 3, 3): the border of a 3x3 mask turned step by step."""
    ring = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0)]
    values = [1, 2, 1, 0, -1, -2, -1, 0]
    bank = np.zeros((8, 1, 3, 3), "float32")
    for direction in range(8):
        for place, value in zip(ring, values[direction:] + values[:direction], strict=True):
            bank[(direction, 0, *place)] = value
    return bank


def blur_bank() -> Array:
    """Gaussians of four widths for each of three colours, (12, 1, 9, 9), each summing to 1."""
    at = np.arange(-4, 5)
    kernels = []
    for sigma in (0.8, 1.2, 1.8, 2.5):
        line = np.exp(-(at**2) / (2 * sigma**2))
        kernel = np.outer(line, line)
        kernels.append(kernel / kernel.sum())
    return np.tile(np.asarray(kernels, "float32"), (3, 1, 1))[:, None]


def gabor_bank() -> Array:
    """Sixteen Gabor filters, eight directions at two wavelengths, (16, 1, 31, 31), each summing to 0."""
    y, x = np.mgrid[-15:16, -15:16]
    kernels = []
    for wavelength in (6.0, 12.0):
        for angle in np.arange(8) * np.pi / 8:
            along = x * np.cos(angle) + y * np.sin(angle)
            envelope = np.exp(-(x**2 + y**2) / (2 * (0.56 * wavelength) ** 2))
            kernel = envelope * np.cos(2 * np.pi * along / wavelength)
            kernels.append(kernel - envelope * kernel.sum() / envelope.sum())
    return np.asarray(kernels, "float32")[:, None]


def _he(shape: tuple[int, ...]) -> Array:
    """He-normal weights (He et al., 2015), always the same for a shape."""
    rng = np.random.default_rng(list(shape))
    return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype("float32")


def _conv(name: str, x: Array, weight: Array, **fields: Any) -> Case:
    spec = ConvSpec(
        batch=x.shape[0],
        in_channels=x.shape[1],
        out_channels=weight.shape[0],
        in_size=x.shape[2:],
        kernel_size=weight.shape[2:],
        **fields,
    )
    return Case(name, spec, Op.CONV, (x, weight))


def _pool(name: str, x: Array, mode: str, kernel: int, stride: int) -> Case:
    spec = PoolSpec(
        mode=mode, batch=x.shape[0], channels=x.shape[1], in_size=x.shape[2:],
        kernel_size=(kernel, kernel), stride=(stride, stride),
    )  # fmt: skip
    return Case(name, spec, Op.POOL, (x,))


def _layer(case: Case) -> Array:
    """What the next layer sees: this convolution's output after ReLU."""
    spec = case.spec
    assert isinstance(spec, ConvSpec)
    x, weight = case.operands()
    return np.maximum(conv2d(x, weight, stride=spec.stride, padding=spec.padding, backend="im2col"), 0)


def photograph() -> list[Case]:
    """The photograph through filter banks and the first layers of two image networks."""
    image, crop = _china()[None], _crop()
    grey = np.ascontiguousarray(image.mean(1, keepdims=True))
    same = {3: ((1, 1), (1, 1)), 9: ((4, 4), (4, 4)), 31: ((15, 15), (15, 15))}
    vgg1 = _conv("VGG16 conv1_1", crop, _he((64, 3, 3, 3)), padding=same[3])
    features = _layer(vgg1)
    vgg2 = _conv("VGG16 conv1_2", features, _he((64, 64, 3, 3)), padding=same[3])
    alex = _conv("AlexNet conv1", crop, _he((64, 3, 11, 11)), stride=(4, 4), padding=((2, 2), (2, 2)))
    return [
        _conv("photo, 8 Sobel edges", grey, edge_bank(), padding=same[3]),
        _conv("photo, 12 Gaussian blurs", image, blur_bank(), padding=same[9], groups=3),
        _conv("photo, 16 Gabor filters", grey, gabor_bank(), padding=same[31]),
        vgg1,
        vgg2,
        _pool("VGG16 pool1", _layer(vgg2), "max", 2, 2),
        alex,
        _pool("AlexNet pool1", _layer(alex), "max", 3, 2),
    ]


def digits() -> list[Case]:
    """A hundred scanned digits through SimpleConvNet's and LeNet's layers."""
    from sklearn.datasets import load_digits

    images = enlarged(load_digits().images[:100] / 16, 28).astype("float32")[:, None]
    simple = _conv("SimpleConvNet conv1", images, _he((30, 1, 5, 5)))
    framed = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)))
    lenet1 = _conv("LeNet-5 conv1", framed, _he((6, 1, 5, 5)))
    first = _layer(lenet1)
    pooled = first.reshape(100, 6, 14, 2, 14, 2).mean((3, 5))
    lenet2 = _conv("LeNet-5 conv2", np.ascontiguousarray(pooled), _he((16, 6, 5, 5)))
    return [
        simple,
        _pool("SimpleConvNet pool1", _layer(simple), "max", 2, 2),
        lenet1,
        _pool("LeNet-5 pool1", first, "avg", 2, 2),
        lenet2,
    ]


def pictures() -> list[tuple[str, str]]:
    """What the default workload computes, to look at: captions and PNG images as data URIs."""
    found: list[tuple[str, Array]] = [("The photograph", _china().transpose(1, 2, 0))]
    cases = {case.name: case for case in default()}
    for name, maps, caption in (
        ("photo, 8 Sobel edges", slice(0, 8, 2), "Sobel edges: the strongest of four directions"),
        ("photo, 12 Gaussian blurs", slice(3, 12, 4), "The widest Gaussian blur of each colour"),
        (
            "photo, 16 Gabor filters",
            slice(8, 16),
            "Gabor filters, wavelength 12: the strongest of eight directions",
        ),
    ):
        case = cases[name]
        spec = case.spec
        assert isinstance(spec, ConvSpec)
        x, weight = case.operands()
        result = conv2d(x, weight, padding=spec.padding, groups=spec.groups, backend="im2col")[0, maps]
        if "blurs" in name:
            found.append((caption, result.transpose(1, 2, 0)))
        else:
            strongest = np.abs(result).max(0)
            found.append((caption, np.minimum(strongest / np.quantile(strongest, 0.995), 1)))
    x, _ = cases["SimpleConvNet conv1"].operands()
    rows = x[:40, 0].reshape(5, 8, 28, 28).transpose(0, 2, 1, 3).reshape(5 * 28, 8 * 28)
    found.append(("Forty of the hundred digits, enlarged to 28 x 28", rows))
    features, _ = cases["VGG16 conv1_2"].operands()
    tiles = features[0, :24, ::2, ::2].reshape(4, 6, 112, 112).transpose(0, 2, 1, 3).reshape(4 * 112, 6 * 112)
    found.append(
        (
            "VGG16 conv1_1 with random weights: 24 of its 64 maps",
            np.minimum(tiles / np.quantile(tiles, 0.995), 1),
        )
    )
    return [(caption, _png(image)) for caption, image in found]


def _png(image: Array, width: int = 420) -> str:
    """An image of values from 0 to 1 as a data URI."""
    from PIL import Image

    made = Image.fromarray((np.clip(image, 0, 1) * 255).astype("uint8"))
    made = made.resize((width, max(1, made.height * width // made.width)))
    stream = io.BytesIO()
    made.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


# ---------------------------------------------------------------------------- smaller versions


def shrunk(case: Case, operations: int) -> Case:
    """The same kind of problem with at most about `operations` of them: fewer images, channels and pixels.

    Kernel, stride, padding, dilation and type stay; groups shrink with the channels. Operands are cut from
    the case's own.
    """
    spec = case.spec.with_batch(min(case.spec.batch, 1))
    while spec.flops(case.op) > operations:
        smaller = _smaller(spec)
        if smaller is None:
            break
        spec = smaller
    return Case(case.name, spec, case.op, _cut(case, spec))


def _smaller(spec: Spec) -> Spec | None:
    if isinstance(spec, PoolSpec):
        if spec.channels > 1:
            return replace(spec, channels=spec.channels // 2)
    elif spec.groups > 1:
        groups = spec.groups // 2
        share = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        return replace(spec, groups=groups, in_channels=groups * share[0], out_channels=groups * share[1])
    elif spec.out_channels > 2:
        return replace(spec, out_channels=spec.out_channels // 2)
    sizes = list(spec.in_size)
    axis = int(np.argmax(sizes))
    sizes[axis] = sizes[axis] * 2 // 3
    least = spec.kernel_extent[axis] - sum(spec.padding[axis]) if spec.kernel_size else spec.out_size[axis]
    if sizes[axis] >= max(least, 2):
        return replace(spec, in_size=tuple(sizes))
    if isinstance(spec, ConvSpec) and spec.in_channels > 2 and spec.groups == 1:
        return replace(spec, in_channels=spec.in_channels // 2)
    return None


def _cut(case: Case, spec: Spec) -> tuple[Array, ...]:
    if not case.arrays:
        return ()
    kept = spec.shapes(case.op)
    return tuple(
        np.ascontiguousarray(array[tuple(map(slice, shape.shape))])
        for array, shape in zip(case.arrays, kept, strict=False)
    )


def is_float(spec: Spec) -> bool:
    """Whether error against float64 means anything."""
    return DTYPES[spec.dtype].kind == "f"


def in_float64(case: Case) -> Case:
    """The case with its operands and its type widened to float64 (integers stay as they are)."""
    if not is_float(case.spec):
        return case
    wide = replace(case.spec, dtype="float64")
    if isinstance(wide, ConvSpec):
        wide = replace(wide, out_dtype="float64")
    arrays = tuple(
        array.astype(numpy_dtype(shape.dtype))
        for array, shape in zip(case.operands(), wide.shapes(case.op), strict=False)
    )
    return Case(case.name, wide, case.op, arrays)
