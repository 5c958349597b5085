"""From a kernel's source to machine code, on machines with a GPU and without: NVRTC, our own options, a cache on disk.

CuPy's own path forces ``-ftz=true`` and knows no ``sm_90a``, and what CI looks at must be what runs: so there is this one
path, used by both. It makes cubin, never PTX: nothing is left for a driver to compile.
"""

from __future__ import annotations

import ctypes
import hashlib
from functools import cache, lru_cache
from importlib.resources import files

from fastconv import disk
from fastconv.backends import BackendUnavailable
from fastconv.backends.cupy.launch import Kernel
from fastconv.gpu import nvrtc

__all__ = ["CompilationFailed", "architecture", "cubin", "options", "sources", "version"]

# Cubins kept on disk (10 to 60 kB each): the networks we measure take 450 for one kind of card, the tests 2,000 for six.
KEPT = 4096


class CompilationFailed(RuntimeError):
    """NVRTC refused a kernel; the message is its log."""


def architecture(compute_capability: str) -> str:
    """The target for a device: ``"90"`` has instructions (wgmma) that only its own ``sm_90a`` names."""
    return f"sm_{compute_capability}" + "a" * (compute_capability == "90")


@cache
def sources() -> dict[str, str]:
    """Every file in ``kernels/``, by name."""
    folder = files("fastconv.backends.cupy").joinpath("kernels")
    return {
        entry.name: entry.read_text(encoding="utf-8")
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith((".cu", ".cuh"))
    }


def options(kernel: Kernel, arch: str) -> tuple[str, ...]:
    """What the compiler is told: nothing that changes a result (no flushing to zero, no fast division)."""
    defines = (f"-D{name}={value}" for name, value in kernel.defines)
    return (f"--gpu-architecture={arch}", "--std=c++17", "-default-device", *defines)


@cache
def version() -> tuple[int, int]:
    """NVRTC's version."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def key(kernel: Kernel, arch: str) -> str:
    """What the machine code depends on: the source and every header, the options, the compiler."""
    digest = hashlib.sha256()
    for name, text in sources().items():
        if name == kernel.source or name.endswith(".cuh"):
            digest.update(f"{name}\0{text}\0".encode())
    digest.update(repr((kernel.source, options(kernel, arch), version())).encode())
    return digest.hexdigest()


@lru_cache(maxsize=KEPT)
def cubin(kernel: Kernel, arch: str) -> bytes:
    """The kernel's machine code for `arch`: from disk if it was compiled before, else compiled (about 0.1 s).

    Raises
    ------
    BackendUnavailable
        If there is no NVRTC.
    CompilationFailed
    """
    folder = disk.root() / "fastconv-cubin"
    path = folder / f"{key(kernel, arch)[:40]}.cubin"
    found = disk.read(path)
    if found is None:
        found = compile_now(kernel, arch)[0]
        disk.write(path, found)
        disk.keep_newest(folder, "*.cubin", KEPT)
    return found


def compile_now(kernel: Kernel, arch: str, *extra: str) -> tuple[bytes, str]:
    """The machine code and the compiler's log, by NVRTC and no cache."""
    library = _library()
    texts = sources()
    headers = {name: text for name, text in texts.items() if name.endswith(".cuh")}
    program = ctypes.c_void_p()
    _check(
        library.nvrtcCreateProgram(
            ctypes.byref(program),
            texts[kernel.source].encode(),
            kernel.source.encode(),
            len(headers),
            _strings(headers.values()),
            _strings(headers.keys()),
        )
    )
    try:
        given = (*options(kernel, arch), *extra)
        failed = library.nvrtcCompileProgram(program, len(given), _strings(given))
        log = _text(program, "Log").rstrip(b"\0").decode(errors="replace")
        if failed:
            raise CompilationFailed(f"{kernel} for {arch}: {_words(failed)}\n{log}")
        return _text(program, "CUBIN"), log
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _library() -> ctypes.CDLL:
    library = nvrtc()
    if library is None:
        raise BackendUnavailable("NVRTC is not found; pip install nvidia-cuda-nvrtc")
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def _strings(values: object) -> ctypes.Array[ctypes.c_char_p]:
    encoded = [str(value).encode() for value in values]  # type: ignore[attr-defined]
    return (ctypes.c_char_p * len(encoded))(*encoded)


def _text(program: ctypes.c_void_p, what: str) -> bytes:
    """A result of NVRTC's, which it is asked the size of first."""
    library, size = _library(), ctypes.c_size_t()
    _check(
        getattr(library, f"nvrtcGet{'ProgramLog' if what == 'Log' else what}Size")(
            program, ctypes.byref(size)
        )
    )
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(library, f"nvrtcGet{'ProgramLog' if what == 'Log' else what}")(program, buffer))
    return buffer.raw


def _words(result: int) -> str:
    return str(_library().nvrtcGetErrorString(result).decode())


def _check(result: int) -> None:
    if result:
        raise CompilationFailed(_words(result))
