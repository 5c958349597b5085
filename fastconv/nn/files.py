"""Parameters and buffers on disk, under their names: ``.npz``, or ``.safetensors`` as other libraries read it.

Files that others wrote are read too: torch's and torchvision's names are ours, Keras' of VGG16 are translated, and ONNX
models are read for the arrays they begin with.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fastconv.nn import keras
from fastconv.nn.layers import Arrays, Layer

FORMATS = (".npz", ".safetensors")
READ = (*FORMATS, ".onnx")

# What others save that computes nothing here: how many batches a normalisation has seen, and the two classifiers
# beside GoogLeNet that only its training needs.
UNUSED = re.compile(r"(.*\.)?num_batches_tracked|aux[12]\..*")


def save(model: Layer, path: str | Path) -> None:
    """Write the parameters and buffers of `model`.

    Parameters
    ----------
    model : Layer
    path : str or Path
        Its ending, ``.npz`` or ``.safetensors``, chooses the format; the second needs the package safetensors.

    Raises
    ------
    ValueError
        For another ending.
    ImportError
        Without safetensors.
    """
    path = check(path)
    host = {name: array.get() if hasattr(array, "get") else array for name, array in _state(model).items()}
    if path.suffix == ".npz":
        np.savez(path, **host)
    else:
        _safetensors().numpy.save_file(
            {name: np.ascontiguousarray(array) for name, array in host.items()}, path
        )


def load(model: Layer, path: str | Path) -> None:
    """Fill the parameters and buffers of `model` with those of a file; all or nothing.

    A file that :func:`save` wrote; one of a ``torch.nn.Sequential`` of the same layers, if ours have no names; one of
    torchvision's weights for the models that have its names; one of Keras' weights for :func:`vgg16`; or a model in
    ONNX whose initialisers have these names.

    Parameters
    ----------
    model : Layer
        Of the same layers as the one saved.
    path : str or Path
        Its ending says what it is: ``.npz``, ``.safetensors`` or ``.onnx``; the last two need the packages safetensors
        and onnx.

    Raises
    ------
    ValueError
        If the file is no such file, or names, shapes or types differ.
    ImportError
        Without the package that reads `path`.
    """
    path = check(path, READ)
    state, found = _state(model), _read(path)
    if keras.names(found):
        found = keras.translated(found)
    found = {name: array for name, array in found.items() if name in state or not UNUSED.fullmatch(name)}
    for names, other, words in ((state, found, "lacks"), (found, state, "holds an unexpected")):
        odd = [name for name in names if name not in other]
        if odd:
            raise ValueError(
                f"path: {path.name} {words} {odd[0]!r}, expected {', '.join(state) or 'no arrays'}"
            )
    for name, array in state.items():
        new = found[name]
        if (new.shape, new.dtype) != (tuple(array.shape), array.dtype):
            raise ValueError(
                f"path: {path.name} holds {name!r} of shape {new.shape} in {new.dtype}, "
                f"expected {tuple(array.shape)} in {array.dtype}"
            )
    for name, array in state.items():
        array[...] = np.asarray(found[name], like=array)


def _state(model: Layer) -> Arrays:
    return {**model.params, **model.buffers}


def check(path: str | Path, endings: tuple[str, ...] = FORMATS) -> Path:
    """`path`, if something can be saved there: before hours of training rather than after."""
    path = Path(path)
    if path.suffix not in endings:
        raise ValueError(f"path: got {path.name!r}, expected a name that ends in {' or '.join(endings)}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"path: got {str(path)!r}, expected a path in a folder that exists")
    if path.suffix == ".safetensors":
        _safetensors()
    return path


def _read(path: Path) -> Arrays:
    if path.suffix == ".safetensors":
        package = _safetensors()
        try:
            found: Arrays = package.numpy.load_file(path)
        except package.SafetensorError as error:
            raise ValueError(f"path: {path.name} is no .safetensors file: {error}") from None
        return found
    if path.suffix == ".onnx":
        return _initialisers(path)
    try:
        with np.load(path) as file:
            return dict(file)
    except (ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"path: {path.name} is no .npz file of arrays: {error}") from None


def _initialisers(path: Path) -> Arrays:
    """The arrays of floats that a model in ONNX begins with; those of integers are shapes and axes."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise ImportError('path: a .onnx file needs the package onnx: pip install "fastconv[onnx]"') from None
    try:
        model = onnx.load(path)
    except DecodeError as error:
        raise ValueError(f"path: {path.name} is no .onnx file: {error}") from None
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {name: array for name, array in arrays.items() if array.dtype.kind == "f"}


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            'path: a .safetensors file needs the package safetensors: pip install "fastconv[safetensors]"'
        ) from None
    return safetensors
