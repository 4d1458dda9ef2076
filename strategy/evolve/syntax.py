"""Parsing, one thread at a time: CPython 3.11 keeps the depth of the tree that it builds in one place for all threads
("AST constructor recursion depth mismatch", python/cpython issue 106905)."""

from __future__ import annotations

import ast
import threading

_LOCK = threading.Lock()


def parse(source: str) -> ast.Module:
    """As `ast.parse`. Raises SyntaxError."""
    with _LOCK:
        try:
            return ast.parse(source)
        except SystemError:  # a thread outside of here was parsing as well
            return ast.parse(source)
