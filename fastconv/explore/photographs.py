"""Class maps of photographs by a network with weights from elsewhere, such as VGG16 trained on ImageNet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fastconv import nn
from fastconv.arguments import Array, integer
from fastconv.explore.attribution import ClassMaps, grad_cam

# Of the colours of ImageNet's photographs, from 0 to 1: what torchvision's weights were trained with.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# ImageNet's numbers of the three classes whose maps an article on Grad-CAM with VGG16 shows.
LAKESIDE, VALLEY, MASHED_POTATO = 975, 979, 935


def photograph(path: str | Path, size: int = 224) -> Array:
    """A photograph as networks trained on ImageNet take it: the square in its middle, standardised.

    Parameters
    ----------
    path : str or Path
        Of any kind that Pillow reads.
    size : int
        Height and width; the shorter side is scaled to 8/7 of it first, as 256 to 224.

    Returns
    -------
    float32 array, shape (1, 3, size, size)

    Raises
    ------
    ImportError
        Without Pillow.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f'{error}; photographs need Pillow: pip install "fastconv[learn]"') from None
    size = integer("size", size, 1)
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    scale = round(size * 8 / 7) / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), "float32") / 255
    made: Array = np.moveaxis((pixels - MEAN) / DEVIATION, 2, 0)[None].astype("float32")
    return made


def photograph_maps(
    model: nn.Layer, weights: str | Path, photographs: Mapping[str, int], size: int = 224
) -> tuple[Array, ClassMaps]:
    """Grad-CAM of photographs, each for a class, with weights from a file.

    Parameters
    ----------
    model : Layer
        Into which the weights are loaded.
    weights : str or Path
        See :func:`fastconv.nn.load`.
    photographs : mapping of str to int
        The class each is explained for, by its file.
    size : int
        Height and width of what the network takes.

    Returns
    -------
    x : array, shape (N, 3, size, size)
    maps : ClassMaps

    Raises
    ------
    FileNotFoundError
        That names every file that is missing, before anything is loaded.
    """
    missing = [str(path) for path in (weights, *photographs) if not Path(path).is_file()]
    if missing:
        raise FileNotFoundError(f"got no {', no '.join(missing)}, expected weights and photographs there")
    nn.load(model, weights)
    x = np.concatenate([photograph(path, size) for path in photographs])
    return x, grad_cam(model, x, np.array(list(photographs.values())))
