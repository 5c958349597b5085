"""Reads docstrings for the API pages: Sphinx roles become links, and ``by_rank`` functions get their source.

A Griffe extension, loaded by ``.mkdocs.yml``.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from griffe import Extension, Function, Object, ObjectNode

ROLE = re.compile(r":(?:func|class|meth|mod):`~?([\w.]+)`")


def definition(function: Any) -> Any:
    """The function that ``by_rank`` bound a rank to; others are returned as they are."""
    if inspect.isfunction(function) and function.__code__.co_qualname.startswith("by_rank."):
        return inspect.getclosurevars(function).nonlocals["function"]
    return function


class Docstrings(Extension):
    """Called by Griffe for every object it has read."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Turn ``:func:`conv2d``` into a link to the function."""
        if obj.docstring is None:
            return

        def link(found: re.Match[str]) -> str:
            name = found[1]
            if "." not in name:  # a sibling: fastconv.grad's own, or the public name
                module = "fastconv.grad" if obj.path.startswith("fastconv.grad.") else "fastconv"
                name = f"{obj.path}.{name}" if obj.is_class else f"{module}.{name}"
            return f"[`{found[1].removeprefix('fastconv.')}`][{name}]"

        obj.docstring.value = ROLE.sub(link, obj.docstring.value)

    def on_function_instance(self, *, node: Any, func: Function, **kwargs: Any) -> None:
        """Show the definition, not the three-line wrapper that binds its rank."""
        if isinstance(node, ObjectNode):
            made = definition(node.obj)
            if made is not node.obj:
                lines, first = inspect.getsourcelines(made)
                func.lineno, func.endlineno = first, first + len(lines) - 1
