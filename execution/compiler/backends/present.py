"""What is installed, asked without importing it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil


def module_missing(module: str, package: str) -> str | None:
    """Why it cannot be imported; None: it is there."""
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    return None if found is not None else f"{package} is not installed (pip install {package})"


def version(package: str) -> str:
    """Of an installed distribution; `none` when there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def compiler_missing() -> str | None:
    """Why no C++ can be compiled; None: it can."""
    told = os.environ.get("CXX")
    if told:
        return (
            None if shutil.which(told) else f"there is no C++ compiler: CXX is {told!r}, which is not on PATH"
        )
    if shutil.which("g++") or shutil.which("clang++"):
        return None
    return "there is no C++ compiler: neither g++ nor clang++ is on PATH"


def compiler_version() -> str:
    """The compiler by its real path, which names its version on most systems."""
    found = shutil.which(os.environ.get("CXX") or "g++") or shutil.which("clang++")
    return os.path.realpath(found) if found else "none"
