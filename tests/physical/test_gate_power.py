"""Power limits, against a library that speaks NVML's six functions. It is compiled here."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from physical.gate import ActuatorError, Gate, GateRules, RefusedError, Rule, SetPower
from physical.gate.gate import FailedError
from physical.gate.local import LocalActuator
from physical.gate.power import NvmlPower

NVML = r"""
#include <string.h>
static unsigned limit[2] = {300000, 300000};
static int broken = -1, sets = 0;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { if (i > 1) return 2; *d = &limit[i]; return 0; }
int nvmlDeviceGetHandleByUUID(const char *u, void **d) { if (strcmp(u, "GPU-b")) return 6; *d = &limit[1]; return 0; }
int nvmlDeviceGetPowerManagementLimit(unsigned *d, unsigned *w) { *w = *d; return 0; }
int nvmlDeviceGetPowerManagementLimitConstraints(unsigned *d, unsigned *a, unsigned *b) { *a = 150000; *b = 350000; return 0; }
int nvmlDeviceSetPowerManagementLimit(unsigned *d, unsigned w) {
  sets++;
  if (d == &limit[1] && broken == 1) return 4;
  *d = w; return 0;
}
void test_break(int i) { broken = i; }
int test_sets(void) { return sets; }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make a library with NVML's functions")
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(NVML)
    made = folder / "libnvml-for-the-gate.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", made, folder / "nvml.c"], check=True)
    return made


def test_limits_are_read_set_and_put_back(library: Path, tmp_path: Path) -> None:
    power = NvmlPower(str(library))
    gate = Gate(
        LocalActuator(tmp_path, lambda: power),
        tmp_path / "journal.jsonl",
        GateRules(allowed_devices=("0", "GPU-b")),
    )
    plan = [SetPower("0", 250.0), SetPower("GPU-b", 200.0)]
    assert [step.now for step in gate.dry_run(plan).steps] == ["limited to 300 W"] * 2
    gate.apply(plan)
    assert (power.limit_watts("0"), power.limit_watts("1")) == (250.0, 200.0)
    assert gate.apply(plan).changed == ()

    handle = ctypes.CDLL(str(library))
    handle.test_break(1)
    with pytest.raises(FailedError, match="no permission"):
        gate.apply([SetPower("0", 180.0), SetPower("GPU-b", 180.0)])
    handle.test_break(-1)
    gate.recover()
    assert (power.limit_watts("0"), power.limit_watts("1")) == (250.0, 200.0)


def test_what_the_device_does_not_take_is_refused_unasked(library: Path, tmp_path: Path) -> None:
    power = NvmlPower(str(library))
    rules = GateRules(allowed_devices=("0", "7"))
    gate = Gate(LocalActuator(tmp_path, lambda: power), tmp_path / "journal.jsonl", rules)
    before = ctypes.CDLL(str(library)).test_sets()
    with pytest.raises(RefusedError, match="takes 150 to 350 W") as refused:
        gate.apply([SetPower("0", 600.0)])
    assert refused.value.refusals[0].rule is Rule.NOT_POSSIBLE
    with pytest.raises(RefusedError, match="no such device"):
        gate.apply([SetPower("7", 200.0)])
    assert ctypes.CDLL(str(library)).test_sets() == before


def test_a_machine_without_nvml_says_so(tmp_path: Path) -> None:
    with pytest.raises(ActuatorError, match="no NVML on this machine"):
        NvmlPower(str(tmp_path / "none.so"))
    rules = GateRules(allowed_devices=("0",))
    gate = Gate(
        LocalActuator(tmp_path, lambda: NvmlPower(str(tmp_path / "none.so"))), tmp_path / "j.jsonl", rules
    )
    with pytest.raises(RefusedError, match="no NVML"):
        gate.apply([SetPower("0", 200.0)])
