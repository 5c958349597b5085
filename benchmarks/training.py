"""One training step of a small network, ours and that of PyTorch's twin of it: their gradients, and their memory.

::

    python -m benchmarks.training simple torch 1 2     # peak bytes of a step on one and on two threads, as JSON
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fastconv as fc
from benchmarks.baselines import start_torch
from fastconv import nn
from fastconv.backends import Unsupported
from fastconv.compare.memory import peak
from fastconv.nn.models import MODELS
from fastconv.testing import CONFIDENCE, ROUNDOFF
from fastconv.threads import set_num_threads

Array = Any
ROOT = Path(__file__).parents[1]

BATCH, SIZE, RATE = 100, 28, 0.01


class Step(NamedTuple):
    """Forward, loss, backward and SGD on the same images each time, and the gradients that the last one left."""

    run: Callable[[], Any]
    gradients: Callable[[], list[Array]]


def images() -> tuple[Array, Array]:
    """A batch, and the class of each image."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((BATCH, 1, SIZE, SIZE)).astype("float32"), rng.integers(0, 10, BATCH)


def ours(network: str) -> Step:
    """fastconv's step."""
    model, optimiser, (x, labels) = MODELS[network](rng=0), nn.SGD(RATE), images()
    return Step(lambda: nn.train_step(model, optimiser, x, labels), lambda: list(model.grads.values()))


def theirs(network: str, channels_last: bool) -> Step:
    """PyTorch's, from the same weights."""
    start_torch(channels_last)
    import torch
    from torch.nn.functional import cross_entropy

    order = torch.channels_last if channels_last else torch.contiguous_format
    model = _twin(network)
    with torch.no_grad():
        for theirs, own in zip(model.parameters(), MODELS[network](rng=0).params.values(), strict=True):
            theirs.copy_(torch.from_numpy(own))
    model = model.to(memory_format=order)
    optimiser = torch.optim.SGD(model.parameters(), RATE)
    x, labels = map(torch.from_numpy, images())
    x = x.to(memory_format=order)

    def run() -> None:
        optimiser.zero_grad()
        cross_entropy(model(x), labels).backward()
        optimiser.step()

    return Step(run, lambda: [parameter.grad.numpy() for parameter in model.parameters()])


def _twin(network: str) -> Any:
    from torch import nn

    if network == "simple":
        return nn.Sequential(
            nn.Conv2d(1, 30, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(30 * 12 * 12, 100), nn.ReLU(), nn.Linear(100, 10),
        )  # fmt: skip
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2),
        nn.Conv2d(16, 120, 5), nn.Tanh(), nn.Flatten(),
        nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10),
    )  # fmt: skip


STEPS: dict[str, Callable[[str], Step]] = {
    "step": ours,
    "torch": partial(theirs, channels_last=False),
    "torch channels_last": partial(theirs, channels_last=True),
}


def reference(network: str) -> tuple[list[Array], list[float]]:
    """The first step's gradients in float64, and how far float32 may be off.

    A sum of K products in arithmetic of unit roundoff u is the exact sum of products of weights moved by
    ``10 sqrt(K) u`` at most (testing.tolerance), and no sum here has more terms than a batch has pixels. So the gradients
    of weights moved by that much show how far those of the very weights may be off.
    """
    moved = CONFIDENCE * math.sqrt(BATCH * SIZE * SIZE) * ROUNDOFF["float32"]
    exact, off = (_gradients(network, share) for share in (0.0, moved))
    return exact, [float(np.abs(a - b).max()) for a, b in zip(exact, off, strict=True)]


def _gradients(network: str, moved: float) -> list[Array]:
    rng, model, (x, labels) = np.random.default_rng(1), MODELS[network](rng=0), images()
    model.convert(lambda array: array * (1 + moved * rng.choice([-1.0, 1.0], array.shape)))
    with fc.use_backend("im2col"):
        _, dlogits = nn.softmax_cross_entropy(model.forward(x.astype("float64"), train=True), labels)
        model.backward(dlogits, input_grad=False)
    return list(model.grads.values())


def peaks(network: str, threads: Sequence[int]) -> dict[str, dict[int, int | None]]:
    """Peak bytes of a step for each way and number of threads, each way in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.training", network]
    counts = list(map(str, threads))
    running = {
        way: subprocess.Popen([*command, way, *counts], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for way in STEPS
    }
    answers = {way: process.communicate()[0] for way, process in running.items()}
    return {way: dict(zip(threads, json.loads(answer), strict=True)) for way, answer in answers.items()}


def _peak(network: str, way: str, threads: int) -> int | None:
    """Two steps in a row are tracked: what one leaves behind, its gradients, is there when the next begins."""
    set_num_threads(threads)
    try:
        step = STEPS[way](network)
    except Unsupported:
        return None
    return peak(lambda: (step.run(), step.run()))


def main() -> None:
    """Print the peaks of one way as JSON."""
    network, way, *counts = sys.argv[1:]
    sys.stdout.write(json.dumps([_peak(network, way, int(count)) for count in counts]))


if __name__ == "__main__":
    main()
