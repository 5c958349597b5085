"""How weights begin: normal numbers, whose standard deviation decides whether signals fade or grow from layer to layer.

`fan_in` is how many products make one output of the layer, `fan_out` how many outputs one input takes part in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from fastconv.arguments import Array
from fastconv.threads import get_num_threads

Initial = str | float
Seed = np.random.Generator | int | None

# Numbers that are drawn at once: 8 MB of float64.
BLOCK = 1 << 20


def plain(fan_in: float, fan_out: float) -> float:
    """Small, whatever the layer: signals fade in deep networks."""
    return 0.01


def xavier(fan_in: float, fan_out: float) -> float:
    """Keeps the variance, both ways, through tanh (Glorot and Bengio, 2010)."""
    return math.sqrt(2 / (fan_in + fan_out))


def he(fan_in: float, fan_out: float) -> float:
    """Keeps the variance through ReLU, which removes half of it (He et al., 2015)."""
    return math.sqrt(2 / fan_in)


INITIALS: dict[str, Callable[[float, float], float]] = {"he": he, "xavier": xavier, "plain": plain}


def normal(
    shape: tuple[int, ...], init: Initial, fan_in: float, fan_out: float, rng: Seed, dtype: str
) -> Array:
    """Weights of a layer. They are drawn in float64: those of a float32 layer are its, rounded."""
    if isinstance(init, str) and init in INITIALS:
        deviation = INITIALS[init](fan_in, fan_out)
    elif isinstance(init, int | float) and not isinstance(init, bool) and 0 <= init < math.inf:
        deviation = float(init)
    else:
        raise ValueError(
            f"init: got {init!r}, expected one of {', '.join(INITIALS)}, or a standard deviation"
        )
    weight = np.zeros(shape, float_type(dtype))  # at a deviation of 0 their pages are never touched
    if deviation:
        _draw(weight.reshape(-1), deviation, np.random.default_rng(rng))
    return weight


def _draw(flat: Array, deviation: float, rng: np.random.Generator) -> None:
    if flat.size <= BLOCK:
        flat[:] = rng.standard_normal(flat.size) * deviation
        return
    # One after the other, VGG16's 138 million take 2.3 s and float64 copies of them 6; each block has a generator of its
    # own, so it does not matter which thread fills it.
    begins = range(0, flat.size, BLOCK)
    seeds = rng.integers(2**63, size=len(begins))
    with ThreadPoolExecutor(get_num_threads()) as threads:
        for begin, seed in zip(begins, seeds, strict=True):
            threads.submit(_draw, flat[begin : begin + BLOCK], deviation, np.random.default_rng(seed))


def float_type(dtype: str) -> str:
    """The type to train in. In 16 bits small gradients vanish, so these are refused."""
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype: got {dtype!r}, expected 'float32' or 'float64'")
    return dtype
