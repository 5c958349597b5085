"""VGG16 on one photograph, and where it looks: a forward pass and Grad-CAM, ours and PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np

from benchmarks.baselines import start_torch
from fastconv import explore, nn
from fastconv.backends import Unsupported
from fastconv.plan import MAX_ERROR

Array = Any

SIZE, CLASSES = 224, 1000
# Convolutions of each block, and their output channels; affine layers stand behind them.
BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


def photograph() -> Array:
    """The middle of scikit-learn's photograph of a temple, as VGG16 takes it: N, C, H, W."""
    return explore.photograph(str(files("sklearn") / "datasets" / "images" / "china.jpg"), SIZE)


def theirs(model: nn.Layer, channels_last: bool) -> Callable[[Array], Array]:
    """PyTorch's network with the same weights: nothing is kept below the layer that is looked at, as ours does."""
    start_torch(channels_last)
    import torch

    layers: list[Any] = []
    channels = 3
    for count, width in BLOCKS:
        for _ in range(count):
            layers += [torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.ReLU()]
            channels = width
        layers.append(torch.nn.MaxPool2d(2))
    inputs = model.params["classifier.0.weight"].shape[1]
    affine = [(inputs, 4096), (4096, 4096), (4096, CLASSES)]
    head = [torch.nn.Linear(*affine[0]), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(*affine[1]), torch.nn.ReLU(),
            torch.nn.Dropout(), torch.nn.Linear(*affine[2])]  # fmt: skip
    twin = torch.nn.ModuleDict(
        {"features": torch.nn.Sequential(*layers), "classifier": torch.nn.Sequential(*head)}
    )
    twin.load_state_dict({name: torch.from_numpy(array) for name, array in model.params.items()})
    twin.eval().requires_grad_(False)
    order = torch.channels_last if channels_last else torch.contiguous_format
    twin.to(memory_format=order)
    below, above = twin["features"][:-1], twin["features"][-1]

    def look(x: Array) -> Array:
        with torch.no_grad():
            maps = below(torch.from_numpy(x).contiguous(memory_format=order))
        maps.requires_grad_(True)
        logits = twin["classifier"](above(maps).flatten(1))
        (gradient,) = torch.autograd.grad(logits[0, logits.argmax()], maps)
        return torch.relu((gradient.mean((2, 3), keepdim=True) * maps).sum(1)).detach().numpy()

    return look


def ways(x: Array) -> dict[str, Callable[[], Array]]:
    """Ours, and PyTorch's two where it is installed, after their maps were compared."""
    model = nn.vgg16(rng=0)
    found = explore.grad_cam(model, x)
    maps = explore.capture(model, x, found.layer)
    # What both may be off by, with transforms in 13 layers, once in the maps and once in their weights.
    allowed = 4 * MAX_ERROR * 16 * float(np.max(np.einsum("nc,nchw->nhw", abs(found.weights), abs(maps))))
    calls: dict[str, Callable[[], Array]] = {"unprepared": lambda: explore.grad_cam(model, x).maps}
    for name, channels_last in (("torch", False), ("torch channels_last", True)):
        try:
            look = theirs(model, channels_last)
        except Unsupported:
            continue
        far = float(np.max(abs(look(x) - found.maps)))
        if far > allowed:
            raise AssertionError(
                f"Grad-CAM of VGG16 is off from {name}'s by {far:.3g}, expected at most {allowed:.3g}"
            )
        calls[name] = partial(look, x)
    return calls
