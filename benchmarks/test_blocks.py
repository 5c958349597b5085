"""Why im2col's blocks hold ``gemm.TARGET_BYTES``: the same layers with blocks of other sizes."""

from __future__ import annotations

from typing import Any

import pytest

from fastconv import testing
from fastconv.backends.im2col import gemm
from fastconv.plan import plan
from fastconv.spec import Op, parse

LAYERS = (
    "n1 c64x224x224 k64x3x3 s1 p1 f32",
    "n1 c128x56x56 k256x3x3 s1 p1 f32",
    "n16 c512x7x7 k512x3x3 s1 p1 f32",
    "n1 c3x224x224 k64x7x7 s2 p3 f32",
    "n100 c1x28x28 k30x5x5 s1 p0 f32",
)


@pytest.fixture(params=[1 << n for n in range(17, 28, 2)], ids=lambda size: f"{size >> 10} KiB")
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(gemm, "TARGET_BYTES", request.param)
    size: int = request.param
    return size


@pytest.mark.parametrize("problem", LAYERS)
def test_block_size(benchmark: Any, request: pytest.FixtureRequest, problem: str, target: int) -> None:
    if request.config.getoption("--smoke") and problem != LAYERS[-1]:
        pytest.skip("left out of the smoke run")
    spec = parse(problem)
    made = plan.__wrapped__(spec, Op.CONV, "im2col", "im2col")
    x, w = testing.operands(spec, Op.CONV)
    packed = made.pack(w)
    benchmark.group = f"blocks {spec}"
    benchmark.extra_info.update(target=target, workspace=made.workspace)
    benchmark(made.run_packed, x, packed)
