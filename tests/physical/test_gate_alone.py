"""Nothing in `physical` but the gate changes other processes or devices."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import physical

ROOT = Path(physical.__file__).parent
ACTS = {"kill", "killpg", "setpriority", "nice", "prlimit", "setrlimit", "pidfd_send_signal"}


def acts_on_others(source: str) -> Iterator[str]:
    """Calls by which the world outside this process changes. Its own threads are its own affair."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, owner = node.func.attr, node.func.value
        module = owner.id if isinstance(owner, ast.Name) else ""
        if module in {"os", "resource", "signal"} and name in ACTS:
            yield f"{module}.{name}"
        elif module == "os" and name == "sched_setaffinity":
            first = node.args[0]
            if not (isinstance(first, ast.Constant) and first.value == 0):
                yield "os.sched_setaffinity"
        elif name.startswith(("nvmlDeviceSet", "nvmlDeviceReset", "nvmlGpuInstance")):
            yield name
        elif name in {"cpu_affinity", "ionice", "rlimit"} and node.args:
            yield f"psutil's {name}"


@pytest.mark.slow
def test_only_the_gate_acts_on_others() -> None:
    found: dict[str, set[str]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        where = path.relative_to(ROOT)
        acts = set(acts_on_others(path.read_text(encoding="utf-8")))
        if acts:
            found[where.parts[0]] = found.get(where.parts[0], set()) | acts
    assert set(found) == {"gate"}, found
    assert {"os.killpg", "os.sched_setaffinity", "os.setpriority", "resource.prlimit"} <= found["gate"]


def test_the_gate_can_neither_reset_a_device_nor_touch_mig() -> None:
    for path in (ROOT / "gate").rglob("*.py"):
        names = [
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value.startswith("nvml")
        ]
        assert not [name for name in names if "Reset" in name or "Mig" in name or "GpuInstance" in name]
