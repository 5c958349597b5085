"""Files that can be made again: machine code, measured times.

Nothing that is wrong with the folder may reach the user: what cannot be read counts as missing, what cannot be written
is not kept. Files are replaced in one step, so processes can share them, and each begins with a digest of the rest, so
half a file is no file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
from pathlib import Path

_DIGEST = 32


def root() -> Path:
    """Where such files are kept: ``NUMBA_CACHE_DIR`` if that is set, else the user's cache folder."""
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(given)
    usual = {
        "darwin": "~/Library/Caches",
        "win32": os.environ.get("LOCALAPPDATA") or "~/AppData/Local",
    }.get(sys.platform, os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    try:
        return Path(usual).expanduser() / "fastconv"
    except RuntimeError:  # a user without a home keeps nothing
        return Path(os.devnull)


def read(path: Path) -> bytes | None:
    """What :func:`write` has put there, or None."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    data = content[_DIGEST:]
    return data if hashlib.sha256(data).digest() == content[:_DIGEST] else None


def write(path: Path, data: bytes) -> None:
    """Keep `data`, if the folder lets us; whatever interrupts this, `path` is whole or as it was."""
    passing = path.with_suffix(f".{os.urandom(8).hex()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        passing.write_bytes(hashlib.sha256(data).digest() + data)
        passing.replace(path)
    except OSError:
        pass
    finally:
        with contextlib.suppress(OSError):
            passing.unlink(missing_ok=True)


def keep_newest(folder: Path, pattern: str, count: int) -> None:
    """Delete all but the `count` newest files or folders of a pattern, as far as the system lets us."""
    with contextlib.suppress(OSError):  # no folder, or another process is deleting too
        found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in found[count:]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
