from collections.abc import Callable
from pathlib import Path

import pytest

DEVICE = """\
version: 1
name: toy
title: A toy GPU
aliases: [plaything]
class: gpu
vendor: nobody
architecture: none
memory_bytes: 8_000_000_000
memory_bytes_per_s: 1e11
flops:
  bf16: 1e13
tdp_watts: 100
idle_watts: 10
usd_per_hour: 0.5
host_load_bytes_per_s: 1e9
sources:
  memory_bytes, memory_bytes_per_s: the box
  all: a guess
"""

NODE = """\
version: 1
name: toy-x2
title: Two toys
devices:
  - {device: toy, count: 2}
host:
  device_link: pcie4-x16
nics:
  eth: {link: ethernet-10g, count: 1}
sources:
  all: a guess
"""

CLUSTER = """\
version: 1
name: toys
title: A box of toys
nodes:
  - {name: a, node: toy-x2, count: 2, attach: {eth: net}}
networks:
  net: {title: a switch}
sources:
  all: a guess
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a profile file below tmp_path, with (old, new) replacements; returns its path."""

    def _write(name: str, text: str, *changes: tuple[str, str]) -> Path:
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return _write
