"""Some calls in a process of its own, which a broken kernel or a sanitizer may end.

    python -m tests.emulator FOLDER "FLAGS" "ALGORITHM ORDER PROBLEM"...

emulates the kernels in FOLDER, built with these flags: of each problem every op that ALGORITHM (or any, for "every")
takes, on integers, with images in order "C" or "L" (channels last) and poisoned results; "T" is C order, and images are turned
wherever they may be, "H" channels last by warpgroups, as on compute capability 9.0. It ends with 0 where all agree with the
definition.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from fastconv.backends import _BACKENDS, Unsupported, _Row, algorithms
from fastconv.plan import Plan, plan
from fastconv.spec import Spec, parse
from fastconv.testing import operands, poisoned, reference
from tests import emulator


def main(folder: str, flags: str, *calls: str) -> None:
    os.environ.pop("LD_PRELOAD", None)  # the sanitizer is for this process, not for the compiler
    _BACKENDS["emulated"] = _Row("emulated_cupy", "numpy")
    for call in calls:
        algorithm, order, problem = call.split(" ", 2)
        how = emulator.Build(Path(folder), tuple(flags.split()), hopper=order == "H")
        sys.modules["emulated_cupy"] = emulator.backend(how)
        plan.cache_clear()
        with emulator.at_any_cost() if order in "TH" else nullcontext():
            made = plans(parse(problem), algorithm)
            assert made, f"{algorithm} takes nothing of {problem}"
            for each in made:
                check(each, order)


def plans(spec: Spec, algorithm: str) -> list[Plan]:
    found = []
    for op in spec.ops:
        for name in algorithms("emulated", op):
            if algorithm in ("every", name):
                try:
                    found.append(plan(spec, op, "emulated", name))
                except Unsupported:
                    continue
    return found


def check(made: Plan, order: str) -> None:
    shapes, given = made.spec.shapes(made.op), operands(made.spec, made.op, "integers")
    moved = [
        np.moveaxis(np.moveaxis(array, 1, -1).copy(), -1, 1)
        if order in "LH" and shape.name in ("input", "grad_output")
        else array
        for array, shape in zip(given, shapes, strict=False)
    ]
    results = tuple(poisoned(shape) for shape in shapes[len(given) :])
    made(*moved, out=results if len(results) == 2 else results[0])
    expected = reference(made.spec, made.op, given)
    for one, other in zip(results, expected if isinstance(expected, tuple) else (expected,), strict=True):
        np.testing.assert_array_equal(one, other.astype(one.dtype), f"{made.op} by {made.algorithm}")


main(*sys.argv[1:])
