"""How weights begin: normal numbers, whose standard deviation decides whether signals fade or grow from layer to layer.

`fan_in` is how many products make one output of the layer, `fan_out` how many outputs one input takes part in.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fastconv.arguments import Array

Initial = str | float
Seed = np.random.Generator | int | None


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
    drawn = np.random.default_rng(rng).standard_normal(shape) * deviation
    return drawn.astype(float_type(dtype))


def float_type(dtype: str) -> str:
    """The type to train in. In 16 bits small gradients vanish, so these are refused."""
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype: got {dtype!r}, expected 'float32' or 'float64'")
    return dtype
