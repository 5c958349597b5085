"""Named lists of problems, one line each: the layers of well-known networks, and small ones with every edge.

Tests, ``fastconv check``, ``fastconv compare`` and the benchmarks all read these lists, so a problem that
one of them finds wanting can be repeated in the others. Batch 1; ``spec.with_batch`` makes others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

__all__ = ["PROBLEMS"]


def _distinct(problems: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(problems))


def _googlenet() -> Iterator[str]:
    """Szegedy et al., Going deeper with convolutions (2014), table 1."""
    yield "n1 c3x224x224 k64x7x7 s2 p3 f32"
    yield "max n1 c64x112x112 k3x3 s2 p0 ceil f32"
    yield "n1 c64x56x56 k64x1x1 s1 p0 f32"
    yield "n1 c64x56x56 k192x3x3 s1 p1 f32"
    yield "max n1 c192x56x56 k3x3 s2 p0 ceil f32"
    # channels, size, then #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool projection
    inceptions = [
        (192, 28, 64, 96, 128, 16, 32, 32),
        (256, 28, 128, 128, 192, 32, 96, 64),
        (480, 14, 192, 96, 208, 16, 48, 64),
        (512, 14, 160, 112, 224, 24, 64, 64),
        (512, 14, 128, 128, 256, 24, 64, 64),
        (512, 14, 112, 144, 288, 32, 64, 64),
        (528, 14, 256, 160, 320, 32, 128, 128),
        (832, 7, 256, 160, 320, 32, 128, 128),
        (832, 7, 384, 192, 384, 48, 128, 128),
    ]
    for c, size, one, reduce3, three, reduce5, five, projection in inceptions:
        for o in (one, reduce3, reduce5, projection):
            yield f"n1 c{c}x{size}x{size} k{o}x1x1 s1 p0 f32"
        yield f"n1 c{reduce3}x{size}x{size} k{three}x3x3 s1 p1 f32"
        yield f"n1 c{reduce5}x{size}x{size} k{five}x5x5 s1 p2 f32"
        yield f"max n1 c{c}x{size}x{size} k3x3 s1 p1 f32"
    yield "max n1 c480x28x28 k3x3 s2 p0 ceil f32"
    yield "max n1 c832x14x14 k3x3 s2 p0 ceil f32"
    yield "avg n1 c1024x7x7 o1x1 f32"


def _resnet50() -> Iterator[str]:
    """He et al., Deep residual learning (2015), with the stride in the 3x3 (as torchvision has it)."""
    yield "n1 c3x224x224 k64x7x7 s2 p3 f32"
    yield "max n1 c64x112x112 k3x3 s2 p1 f32"
    channels, size = 64, 56
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        out = size // stride
        yield f"n1 c{channels}x{size}x{size} k{width}x1x1 s1 p0 f32"
        yield f"n1 c{width}x{size}x{size} k{width}x3x3 s{stride} p1 f32"
        yield f"n1 c{width}x{out}x{out} k{4 * width}x1x1 s1 p0 f32"
        yield f"n1 c{channels}x{size}x{size} k{4 * width}x1x1 s{stride} p0 f32"
        yield f"n1 c{4 * width}x{out}x{out} k{width}x1x1 s1 p0 f32"
        yield f"n1 c{width}x{out}x{out} k{width}x3x3 s1 p1 f32"
        channels, size = 4 * width, out
    yield "avg n1 c2048x7x7 o1x1 f32"


def _mobilenet() -> Iterator[str]:
    """Howard et al., MobileNets (2017), table 1."""
    yield "n1 c3x224x224 k32x3x3 s2 p1 f32"
    channels, size = 32, 112
    for out, stride in (
        (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (1024, 2), (1024, 1),
    ):  # fmt: skip
        yield f"n1 c{channels}x{size}x{size} k{channels}x3x3 s{stride} p1 g{channels} f32"
        size //= stride
        yield f"n1 c{channels}x{size}x{size} k{out}x1x1 s1 p0 f32"
        channels = out
    yield "avg n1 c1024x7x7 o1x1 f32"


def _vgg16() -> Iterator[str]:
    """Simonyan and Zisserman, Very deep convolutional networks (2014), configuration D."""
    channels = 3
    for size, width in ((224, 64), (112, 128), (56, 256), (28, 512), (14, 512)):
        yield f"n1 c{channels}x{size}x{size} k{width}x3x3 s1 p1 f32"
        yield f"n1 c{width}x{size}x{size} k{width}x3x3 s1 p1 f32"
        yield f"max n1 c{width}x{size}x{size} k2x2 s2 p0 f32"
        channels = width


_ALEXNET = (  # Krizhevsky, One weird trick (2014), as torchvision has it
    "n1 c3x224x224 k64x11x11 s4 p2 f32",
    "max n1 c64x55x55 k3x3 s2 p0 f32",
    "n1 c64x27x27 k192x5x5 s1 p2 f32",
    "max n1 c192x27x27 k3x3 s2 p0 f32",
    "n1 c192x13x13 k384x3x3 s1 p1 f32",
    "n1 c384x13x13 k256x3x3 s1 p1 f32",
    "n1 c256x13x13 k256x3x3 s1 p1 f32",
    "max n1 c256x13x13 k3x3 s2 p0 f32",
)

_LENET = (  # LeCun et al., Gradient-based learning (1998)
    "n1 c1x32x32 k6x5x5 s1 p0 f32",
    "avg n1 c6x28x28 k2x2 s2 p0 f32",
    "n1 c6x14x14 k16x5x5 s1 p0 f32",
    "avg n1 c16x10x10 k2x2 s2 p0 f32",
    "n1 c16x5x5 k120x5x5 s1 p0 f32",
)

_SIMPLE = (  # Saito, Deep Learning from Scratch (2016), section 7.5
    "n1 c1x28x28 k30x5x5 s1 p0 f32",
    "max n1 c30x24x24 k2x2 s2 p0 f32",
)

# Small enough for plain Python loops, each with one thing that is easily got wrong.
_EDGES = (
    "n2 c3x6x7 k4x3x3 s1 p1 f32",
    "n0 c3x6x7 k4x3x3 s1 p1 f32",
    "n1 c1x1x1 k1x1x1 s1 p0 f32",
    "n3 c5x4x6 k7x1x1 s1 p0 f32",
    "n2 c4x5x7 k3x1x1 s2 p0 f32",
    "n2 c3x5x30 k4x1x1 s1 p0:2x0 f32",
    "n1 c2x5x5 k3x5x5 s1 p0 f32",
    "n1 c2x3x3 k3x5x5 s1 p1 f32",
    "n1 c2x9x8 k3x3x2 s2x3 p1x0 f32",
    "n2 c2x8x9 k2x2x2 s3 p0 f32",
    "n1 c2x9x11 k3x3x3 s1 p2 d2 f32",
    "n1 c2x9x11 k3x3x2 s2x1 p2x1 d3x2 f32",
    "n1 c2x6x6 k3x3x3 s1 p0:1x2:0 f32",
    "n1 c2x6x6 k3x3x3 s1 p2:-1 f32",
    "n2 c6x5x5 k4x3x3 s1 p1 g2 f32",
    "n2 c4x6x5 k4x3x3 s2 p1 g4 f32",
    "n1 c3x6x5 k6x3x3 s1 p1 g3 f32",
    "n1 c2x5x6 k3x3x3 s1 p2 reflect f32",
    "n1 c2x5x6 k3x3x3 s2 p1x2 replicate f32",
    "n1 c2x5x6 k3x3x5 s1 p1x3:0 circular f32",
    "n1 c2x5x6 k3x3x3 s1 p2 d2 symmetric f32",
    "n1 c1x1x1 k2x3x3 s1 p1 replicate f32",
    "n1 c2x13x12 k2x9x8 s1 p4x3 f32",
    "n1 c3x17 k4x5 s2 p2 f32",
    "n2 c4x9 k6x3 s1 p0:2 d2 g2 f32",
    "n1 c2x8 k3x4 s1 p2:1 reflect f32",
    "n1 c2x4x5x3 k3x2x3x2 s1 p1 f32",
    "n2 c2x5x4x6 k2x3x2x3 s2x1x3 p1x0x2 d1x2x1 f32",
    "n1 c4x3x4x4 k4x2x2x2 s1 p0 g4 f32",
    "n1 c2x3x4x3 k2x3x3x3 s1 p1 circular f32",
    "n2 c3x6x7 k4x3x3 s1 p1 f64",
    "n2 c3x6x7 k4x3x3 s1 p1 f16",
    "n2 c3x6x7 k4x3x3 s2 p1 bf16",
    "n2 c3x6x7 k4x3x3 s1 p1 s8",
    "n2 c3x6x7 k4x3x3 s1 p1 u8",
    "n1 c3x6x7 k4x1x1 s1 p0 f16",
    "n1 c3x6x7 k4x3x3 s1 p1 s16>s32",
    "n1 c3x6x7 k4x3x3 s1 p1 s32",
    "n1 c3x6x7 k4x3x3 s1 p1 u64",
    "max n2 c3x6x7 k2x2 s2 p0 f32",
    "max n2 c3x6x7 k2x2 s2 p0 indices f32",
    "max n0 c3x6x7 k2x2 s2 p0 indices f32",
    "max n1 c2x7x8 k3x3 s2 p1 ceil indices f32",
    "max n1 c2x9x8 k3x2 s1 p2x1 d2x3 indices f32",
    "max n1 c2x5x5 k5x5 s1 p0 indices f64",
    "max n1 c2x7x8 k2x3 s3 p0 f16",
    "max n1 c2x7x8 k3x3 s2 p1 indices s8",
    "max n1 c2x7x8 k3x3 s2 p1 bf16",
    "max n1 c2x11 k3 s2 p1 indices f32",
    "max n1 c2x4x5x3 k2x2x2 s1 p0 indices f32",
    "max n1 c3x7x5 o3x2 indices f32",
    "max n2 c2x5x4x3 o2x3x3 f32",
    "avg n2 c3x6x7 k2x2 s2 p0 f32",
    "avg n1 c1x4x4 k3x3 s2 p1 ceil f32",
    "avg n1 c1x4x4 k3x3 s2 p1 ceil exclude_pad f32",
    "avg n1 c2x7x8 k3x2 s2 p1 divisor5 f32",
    "avg n1 c2x7x8 k3x3 s1 p1:0x0:1 exclude_pad f64",
    "avg n1 c2x7x8 k3x3 s2 p1 f16",
    "avg n1 c2x7x8 k3x3 s2 p1 bf16",
    "avg n1 c2x7x8 k3x3 s2 p1 u8",
    "avg n1 c2x9 k4 s3 p2 f32",
    "avg n1 c2x4x5x3 k2x3x2 s2x1x1 p1 f32",
    "avg n1 c3x7x5 o3x2 f32",
    "avg n1 c3x5x5 o1x1 f32",
    "avg n2 c2x9 o4 f32",
    "lp2 n2 c3x6x7 k2x2 s2 p0 f32",
    "lp3 n1 c2x7x8 k3x3 s2 p0 ceil f32",
    "lp1.5 n1 c2x9 k4 s3 p0 f64",
    "lp2 n1 c2x4x5x3 k2x3x2 s1 p0 f16",
)

PROBLEMS: dict[str, tuple[str, ...]] = {
    "edges": _EDGES,
    "lenet": _LENET,
    "simple": _SIMPLE,
    "alexnet": _ALEXNET,
    "vgg16": _distinct(_vgg16()),
    "googlenet": _distinct(_googlenet()),
    "resnet50": _distinct(_resnet50()),
    "mobilenet": _distinct(_mobilenet()),
}
