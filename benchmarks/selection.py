"""Which problems a run times."""

from __future__ import annotations

import pytest

from fastconv.problems import PROBLEMS
from fastconv.spec import Spec, parse

SMOKE = (
    "n1 c1x28x28 k30x5x5 s1 p0 f32",
    "n1 c64x14x14 k64x3x3 s1 p1 f32",
    "n1 c64x14x14 k64x1x1 s1 p0 f32",
    "n1 c32x28x28 k32x3x3 s1 p1 g32 f32",
    "max n1 c30x24x24 k2x2 s2 p0 f32",
    "avg n1 c64x7x7 o1x1 f32",
)


def specs(config: pytest.Config) -> list[Spec]:
    """The problems this run times."""
    if config.getoption("--smoke"):
        return [parse(text) for text in SMOKE]
    return [
        parse(text).with_batch(config.getoption("--batch"))
        for text in PROBLEMS[config.getoption("--workload")]
    ]
