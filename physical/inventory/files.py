"""Writes a machine's profile files, and reads them back before anybody else does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from hw_profiles import Topology, load_cluster
from hw_profiles.errors import ProfileError
from physical.inventory.naming import slug
from physical.inventory.profile import Written

_HEAD = "# Written by `autopoiesis physical probe`. Figures whose source begins with `not measured` are stand-ins.\n"


def cluster_name(out: Path) -> str:
    """The cluster's name, from the file's.

    Raises:
        ProfileError: the file is called in a way that a profile cannot be.
    """
    if out.suffix not in {".yaml", ".yml"}:
        raise ProfileError(f"--out: '{out}' must end in .yaml")
    if slug(out.stem) != out.stem:
        raise ProfileError(
            f"--out: '{out.stem}' is no profile name (lower-case letters, digits, '.', '-'): try '{slug(out.stem)}.yaml'"
        )
    return out.stem


def save(written: Written, out: Path) -> tuple[list[Path], Topology]:
    """Write the files of a machine and load them; the parts go into folders beside the cluster's file, which comes last.

    Raises:
        ProfileError: what was written does not load (and says why).
        OSError: a file cannot be written.
    """
    root = out.parent.parent if out.parent.name == "clusters" else out.parent
    paths = []
    for name, content in written.parts.items():
        paths.append(_save(root / name, content))
    paths.append(_save(out, {key: value for key, value in written.cluster.items() if value != {}}))
    return paths, load_cluster(str(out))


def text_of(content: dict[str, Any]) -> str:
    """One file's text."""
    return _HEAD + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)


def _save(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        made.write_text(text_of(content), encoding="utf-8")
        made.replace(path)
    finally:
        made.unlink(missing_ok=True)
    return path
