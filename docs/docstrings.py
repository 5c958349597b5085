"""Prepares docstrings for the API pages: roles become links, types stay as written, sources are the right ones.

A Griffe extension and a MkDocs hook, both loaded by ``.mkdocs.yml``.
"""

from __future__ import annotations

import inspect
import pydoc
import re
from typing import Any

from griffe import Docstring, DocstringSection, Extension, Function, Object, ObjectNode

ROLE = re.compile(r":(?:func|class|meth|mod):`~?([\w.]+)`")


def definition(function: Any) -> Any:
    """The function that ``by_rank`` bound a rank to; others are returned as they are."""
    if inspect.isfunction(function) and function.__code__.co_qualname.startswith("by_rank."):
        return inspect.getclosurevars(function).nonlocals["function"]
    return function


def bare(text: str) -> str:
    """`text` without what Griffe drops or adds when it reads a type as Python."""
    return re.sub(r"""[\s()\[\]{}'",]""", "", text)


def sections(docstring: Docstring) -> list[DocstringSection]:
    """The parsed docstring with every type as it was written, and ``a, b : int`` as one entry.

    Griffe reads ``array, shape (N, C)`` as a tuple and a call; the signature above shows defaults already.
    """
    written = {}
    for line in docstring.value.splitlines():
        head, _, tail = line.rstrip().partition(" : ")
        text = (tail or head).removesuffix(", optional")
        written[bare(text)] = text.replace("`", "")
    groups = {
        tuple(line.partition(" : ")[0].split(", ")): " : " in line for line in docstring.value.splitlines()
    }
    made = docstring.parse("numpy", warnings=False)
    for section in made:
        if section.kind.value not in ("parameters", "attributes", "returns", "yields", "raises"):
            continue
        for item in section.value:
            as_written = written.get(bare(str(item.annotation)))
            if as_written is not None and as_written != str(item.annotation):
                item.annotation = as_written
        for names, typed in groups.items():
            items = [item for item in section.value if getattr(item, "name", None) in names]
            if len(names) > 1 and len(items) == len(names):
                items[0].name = ", ".join(names)
                if not typed:
                    items[0].annotation = None
                section.value[:] = [item for item in section.value if item not in items[1:]]
        for item in section.value:
            if hasattr(item, "value"):
                item.value = None
    return made


class Docstrings(Extension):
    """Called by Griffe for every object it has read."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Turn ``:func:`conv2d``` into a link to the function."""
        if obj.docstring is None:
            return

        def link(found: re.Match[str]) -> str:
            name = found[1]
            if "." not in name:
                # A neighbour: in the class, in the package, in the module, or else a public name.
                package = ".".join(obj.path.split(".")[:2])
                around = [obj.path, package, obj.path.rpartition(".")[0], "fastconv"]
                home = next((path for path in around if hasattr(pydoc.locate(path), name)), "fastconv")
                name = f"{home}.{name}"
            return f"[`{found[1].removeprefix('fastconv.')}`][{name}]"

        obj.docstring.value = ROLE.sub(link, obj.docstring.value)
        obj.docstring.parsed = sections(obj.docstring)

    def on_function_instance(self, *, node: Any, func: Function, **kwargs: Any) -> None:
        """Show the definition, not the three-line wrapper that binds its rank."""
        if isinstance(node, ObjectNode):
            made = definition(node.obj)
            if made is not node.obj:
                lines, first = inspect.getsourcelines(made)
                func.lineno, func.endlineno = first, first + len(lines) - 1


def on_page_content(html: str, **kwargs: Any) -> str:
    """Drop the dash that the theme puts before a description where there is none."""
    return re.sub(r"\u2013\s*<div class=\"doc-md-description\">\s*</div>", "", html)
