"""What is read of a processor, from files of processors that this machine is not."""

from pathlib import Path

import pytest

from execution.compiler.backends.tvm.cpu import read


def machine(folder: Path, flags: str, caches: dict[str, tuple[str, str, str]]) -> tuple[Path, Path]:
    cpuinfo = folder / "cpuinfo"
    cpuinfo.write_text(
        f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: none\n"
    )
    for name, values in caches.items():
        place = folder / "cache" / name
        place.mkdir(parents=True)
        for key, value in zip(("level", "type", "size"), values, strict=True):
            (place / key).write_text(value + "\n")
    return cpuinfo, folder / "cache"


@pytest.mark.parametrize(
    ("flags", "lanes", "registers"),
    [
        ("sse4_2", 4, 16),
        ("sse4_2 avx", 8, 16),
        ("avx avx2 fma", 8, 16),
        ("avx2 avx512f", 8, 16),
        ("avx2 avx512f avx512bw", 16, 32),
    ],
)
def test_lanes(tmp_path: Path, flags: str, lanes: int, registers: int) -> None:
    cpu = read(*machine(tmp_path, flags, {}), "x86_64")
    assert (cpu.lanes, cpu.registers) == (lanes, registers)


def test_caches_that_hold_data(tmp_path: Path) -> None:
    caches = {
        "index0": ("1", "Data", "48K"),
        "index1": ("1", "Instruction", "32K"),
        "index2": ("2", "Unified", "2M"),
    }
    cpu = read(*machine(tmp_path, "avx2", caches), "x86_64")
    assert (cpu.l1_bytes, cpu.l2_bytes) == (48 * 1024, 2 * 1024 * 1024)


def test_fingerprint_tells_instruction_sets_apart(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = read(*machine(tmp_path / "a", "avx2", {}), "x86_64")
    other = read(*machine(tmp_path / "b", "avx2 fma", {}), "x86_64")
    assert one.fingerprint != other.fingerprint


def test_a_machine_that_says_nothing(tmp_path: Path) -> None:
    cpu = read(tmp_path / "none", tmp_path / "none", "aarch64")
    assert (cpu.lanes, cpu.registers, cpu.l1_bytes) == (4, 32, 32 * 1024)
