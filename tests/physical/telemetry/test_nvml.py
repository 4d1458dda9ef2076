"""The genuine NVML binding against the fake driver library, each scenario in a process that has it loaded."""

import ctypes
import json
from pathlib import Path

import pytest

from tests.physical.telemetry import fake, scenarios

needs_compiler = pytest.mark.skipif(
    fake.library() is None, reason="no C compiler (cc, gcc or clang) to build the fake driver library with"
)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """All scenarios, in one process: what failed in each."""
    state = fake.Machine(tmp_path_factory.mktemp("nvml") / "state").path
    done = fake.run_python(["-m", "tests.physical.telemetry.scenarios"], state)
    assert done.returncode == 0, done.stderr
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


@needs_compiler
@pytest.mark.parametrize("name", scenarios.SCENARIOS)
def test_scenario(name: str, outcomes: dict[str, str | None]) -> None:
    assert outcomes[name] is None, outcomes[name]


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", scenarios.THREADED)
def test_threaded_scenario(name: str, tmp_path: Path) -> None:
    state = fake.Machine(tmp_path / "state").path
    done = fake.run_python(["-m", "tests.physical.telemetry.scenarios", name], state)
    assert json.loads(done.stdout) == {name: None}, done.stdout


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", scenarios.OLD_DRIVER)
def test_old_driver(name: str, tmp_path: Path) -> None:
    state = fake.Machine(tmp_path / "state").path
    done = fake.run_python(["-m", "tests.physical.telemetry.scenarios", name], state, "-DOLD_DRIVER")
    assert json.loads(done.stdout) == {name: None}, done.stdout


@needs_compiler
def test_both_sides_lay_out_the_state_alike() -> None:
    folder = fake.library()
    assert folder is not None
    library = ctypes.CDLL(str(folder / "libnvidia-ml.so.1"))
    library.fake_nvml_layout.restype = ctypes.c_ulong
    assert library.fake_nvml_layout() == ctypes.sizeof(fake.State)


@pytest.mark.slow
def test_importing_telemetry_imports_no_binding(tmp_path: Path) -> None:
    code = (
        "import sys, physical.telemetry.sampler, physical.inventory.probe, physical.forecast, physical.telemetry.cli;"
        "sys.exit('pynvml' in sys.modules)"
    )
    state = fake.Machine(tmp_path / "state").path
    assert fake.run_python(["-c", code], state).returncode == 0
