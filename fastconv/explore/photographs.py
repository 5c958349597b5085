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


def photograph(path: str | Path, size: int = 224, channels: int = 3) -> Array:
    """A picture as a network takes it: the square in its middle, standardised.

    Parameters
    ----------
    path : str or Path
        Of any kind that Pillow reads.
    size : int
        Height and width.
    channels : {1, 3}
        Three colours are scaled to 8/7 of `size` and cut to it, as 256 to 224, and standardised as torchvision's weights
        expect it; one is grey, whole, of mean 0 and variance 1.

    Returns
    -------
    float32 array, shape (1, channels, size, size)

    Raises
    ------
    ValueError
        If the file is no picture that can be read, or there are to be other than 1 or 3 channels.
    ImportError
        Without Pillow.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError(f'{error}; photographs need Pillow: pip install "fastconv[learn]"') from None
    size, channels = integer("size", size, 1), integer("channels", channels, 1)
    if channels not in (1, 3):
        raise ValueError(f"channels: got {channels}, expected 1 or 3")
    scaled = size if channels == 1 else round(size * 8 / 7)
    begin = (scaled - size) // 2
    try:
        with Image.open(path) as opened:
            image = ImageOps.fit(
                opened.convert("L" if channels == 1 else "RGB"), (scaled, scaled), Image.Resampling.BILINEAR
            )
    except OSError as error:
        raise ValueError(f"image: got {str(path)!r}, expected a picture that can be read ({error})") from None
    image = image.crop((begin, begin, begin + size, begin + size))
    pixels = np.asarray(image, "float32").reshape(size, size, channels) / 255
    mean, deviation = (MEAN, DEVIATION) if channels == 3 else (pixels.mean(), max(float(pixels.std()), 1e-6))
    made: Array = np.moveaxis((pixels - mean) / deviation, 2, 0)[None].astype("float32")
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
