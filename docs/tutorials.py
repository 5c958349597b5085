"""Keeps the tutorials' pictures: a page's own code draws them, and each picture carries the digest of that code.

A MkDocs hook, loaded by ``.mkdocs.yml``: pictures whose page has changed are drawn anew before a build, which takes
the extra ``learn``. ``tests/test_docs.py`` refuses pictures that carry another digest than their page's.
"""

from __future__ import annotations

import doctest
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^```(python|pycon)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"!\[[^\]]+\]\(([\w-]+\.png)\)")


def script(text: str) -> str:
    """All code of a page as one program, without the examples that show an error."""
    parse = doctest.DocTestParser().get_examples
    return "".join(
        block
        if language == "python"
        else "".join(example.source for example in parse(block) if example.exc_msg is None)
        for language, block in BLOCK.findall(text)
    )


def digest(text: str) -> str:
    """What the pictures of a page carry."""
    return hashlib.sha256(script(text).encode()).hexdigest()


def is_of(picture: Path, text: str) -> bool:
    """Whether a picture was drawn by the code of the page `text`."""
    return picture.is_file() and digest(text).encode() in picture.read_bytes()


def draw(page: Path) -> None:
    """Run a page in an empty folder and put its pictures beside it, of 256 colours each to keep them small."""
    from PIL import Image, PngImagePlugin

    text = page.read_text(encoding="utf-8")
    mark = PngImagePlugin.PngInfo()
    mark.add_text("Source", digest(text))
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "MPLBACKEND": "agg"}
        subprocess.run([sys.executable, "-c", script(text)], cwd=folder, env=environment, check=True)
        for name in PICTURE.findall(text):
            drawn = Image.open(Path(folder) / name).convert("RGB").quantize(256, dither=Image.Dither.NONE)
            drawn.save(page.with_name(name), optimize=True, pnginfo=mark)


def on_pre_build(config: Any) -> None:
    """Draw what is stale. A translation shows the pictures of the page it translates."""
    for page in sorted((Path(config["docs_dir"]) / "tutorials").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if len(page.suffixes) == 1 and not all(
            is_of(page.with_name(name), text) for name in PICTURE.findall(text)
        ):
            draw(page)
