"""Parameters and buffers on disk, under their names: ``.npz``, or ``.safetensors`` as other libraries read it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fastconv.nn.layers import Arrays, Layer

FORMATS = (".npz", ".safetensors")


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
    """Fill the parameters and buffers of `model` with what :func:`save` wrote; all or nothing.

    A file of a ``torch.nn.Sequential`` of the same layers fits one of layers without names.

    Parameters
    ----------
    model : Layer
        Of the same layers as the one saved.
    path : str or Path

    Raises
    ------
    ValueError
        If the file is no such file, or names, shapes or types differ.
    ImportError
        Without safetensors, if that is what `path` is.
    """
    path = check(path)
    state, found = _state(model), _read(path)
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


def check(path: str | Path) -> Path:
    """`path`, if something can be saved there: before hours of training rather than after."""
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"path: got {path.name!r}, expected a name that ends in {' or '.join(FORMATS)}")
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
    try:
        with np.load(path) as file:
            return dict(file)
    except (ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"path: {path.name} is no .npz file of arrays: {error}") from None


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            'path: a .safetensors file needs the package safetensors: pip install "fastconv[safetensors]"'
        ) from None
    return safetensors
