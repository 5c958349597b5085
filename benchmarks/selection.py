"""Which problems a run times."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from fastconv.problems import PROBLEMS
from fastconv.spec import ConvSpec, Op, PoolSpec, Spec, parse

if TYPE_CHECKING:
    import pytest

SMOKE = (
    "n1 c1x28x28 k30x5x5 s1 p0 f32",
    "n1 c64x14x14 k64x3x3 s1 p1 f32",
    "n1 c64x14x14 k64x1x1 s1 p0 f32",
    "n1 c32x28x28 k32x3x3 s1 p1 g32 f32",
    "max n1 c30x24x24 k2x2 s2 p0 f32",
    "avg n1 c64x7x7 o1x1 f32",
)

NETWORKS = tuple(name for name in PROBLEMS if name != "edges")

# Whose layers' gradients are measured, and whose pools' alone.
TRAINED = ("lenet", "alexnet", "vgg16", "resnet50", "mobilenet", "googlenet")
POOLS_ONLY = ("googlenet",)


def specs(config: pytest.Config) -> list[Spec]:
    """The problems this run times."""
    if config.getoption("--smoke"):
        return [parse(text) for text in SMOKE]
    return [
        parse(text).with_batch(config.getoption("--batch"))
        for text in PROBLEMS[config.getoption("--workload")]
    ]


def gradients_of(network: str, batch: int) -> list[tuple[Spec, Op]]:
    """The gradients of a network's layers that are measured."""
    found = gradients(layers(network, batch)) if network in TRAINED else []
    return [row for row in found if network not in POOLS_ONLY or isinstance(row[0], PoolSpec)]


def layers(network: str, batch: int) -> list[Spec]:
    """Every distinct convolution and pool of a network; a pool with a window in its three kinds."""
    found: list[Spec] = []
    for text in PROBLEMS[network]:
        found += kinds(parse(text).with_batch(batch))
    return list(dict.fromkeys(found))


def kinds(spec: Spec) -> list[Spec]:
    """A pool's maximum without and with indices, and its average, over the same windows; others themselves."""
    if isinstance(spec, ConvSpec) or spec.output_size:
        return [spec]
    plain: PoolSpec = replace(spec, mode="max", indices=False)
    return [plain, replace(plain, indices=True), replace(plain, mode="avg")]


def forwards(specs: Iterable[Spec]) -> list[tuple[Spec, Op]]:
    """These layers themselves."""
    return [(spec, spec.ops[0]) for spec in specs]


def gradients(specs: Iterable[Spec]) -> list[tuple[Spec, Op]]:
    """Every gradient of these layers; that of a max pool from the indices which training keeps."""
    found: list[tuple[Spec, Op]] = []
    for spec in specs:
        if isinstance(spec, ConvSpec):
            found += [(spec, Op.CONV_INPUT_GRAD), (spec, Op.CONV_WEIGHT_GRAD)]
        elif spec.mode != "max" or spec.indices:
            found.append((spec, Op.POOL_INPUT_GRAD))
    return found
