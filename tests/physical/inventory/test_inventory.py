"""Inventory on made-up machines: a /sys tree, hwloc's XML, and GPUs of the fake driver library."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hw_profiles import ProfileError, load_cluster, load_device
from hw_profiles.compare import compare
from hw_profiles.loader import problems_in
from physical.inventory.facts import (
    CpuFacts,
    GpuFacts,
    MachineFacts,
    Measured,
    NicFacts,
    NumaFacts,
    NvLinkFacts,
)
from physical.inventory.files import cluster_name, save
from physical.inventory.hwloc import HwlocError, read_hwloc
from physical.inventory.profile import NOT_MEASURED, write_profile
from physical.inventory.sysfs import cpu_list, find_cpu, find_nics
from physical.telemetry.cli import app
from tests.physical.telemetry import fake

runner = CliRunner()
GIB = 1 << 30


def _tree(root: Path) -> Path:
    """Two sockets of two cores with two threads each; the second socket has no cache files."""
    files = {
        "proc/cpuinfo": "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon Test\nflags\t\t: fpu avx2 avx512f\n",
        "proc/meminfo": f"MemTotal: {64 * 1024 * 1024} kB\n",
        "sys/class/powercap/intel-rapl:0/constraint_0_power_limit_uw": "205000000",
        "sys/class/powercap/intel-rapl:1/constraint_0_power_limit_uw": "205000000",
        "sys/class/net/eth0/speed": "25000",
        "sys/class/net/eth0/operstate": "up",
        "sys/class/net/eth0/device/numa_node": "1",
        "sys/class/net/eth1/speed": "-1",
        "sys/class/net/eth1/device/numa_node": "-1",
        "sys/class/net/lo/speed": "10",
        "sys/class/infiniband/mlx5_0/ports/1/rate": "400 Gb/sec (4X NDR)",
        "sys/class/infiniband/mlx5_0/ports/1/state": "4: ACTIVE",
    }
    for cpu in range(8):
        base = f"sys/devices/system/cpu/cpu{cpu}"
        files[f"{base}/topology/physical_package_id"] = str(cpu % 4 // 2)
        files[f"{base}/topology/core_id"] = str(cpu % 2)
        files[f"{base}/cpufreq/cpuinfo_max_freq"] = "3500000"
        if cpu % 4 < 2:
            files[f"{base}/cache/index2/level"] = "2"
            files[f"{base}/cache/index2/size"] = "1024K"
            files[f"{base}/cache/index2/type"] = "Unified"
            files[f"{base}/cache/index2/shared_cpu_list"] = f"{cpu % 4},{cpu % 4 + 4}"
    for node in range(2):
        base = f"sys/devices/system/node/node{node}"
        files[f"{base}/meminfo"] = f"Node {node} MemTotal: {32 * 1024 * 1024} kB\n"
        files[f"{base}/cpulist"] = f"{2 * node}-{2 * node + 1},{2 * node + 4}-{2 * node + 5}"
        files[f"{base}/distance"] = "10 21" if node == 0 else "21 10"
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_cpus_domains_and_caches_from_sys(tmp_path: Path) -> None:
    cpu = find_cpu(_tree(tmp_path))
    assert (cpu.model, cpu.vendor, cpu.sockets, cpu.cores, cpu.threads) == ("Xeon Test", "intel", 2, 4, 8)
    assert (cpu.max_mhz, cpu.package_watts, cpu.memory_bytes) == (3500, 410, 64 * GIB)
    assert [domain.cpus for domain in cpu.numa] == [(0, 1, 4, 5), (2, 3, 6, 7)]
    assert cpu.numa[1].distances == (21, 10)
    assert [(c.level, c.size_bytes, c.count) for c in cpu.caches] == [(2, 1 << 20, 2)]


def test_a_machine_that_tells_nothing_is_still_one(tmp_path: Path) -> None:
    cpu = find_cpu(tmp_path)
    assert (cpu.sockets, cpu.cores, len(cpu.numa)) == (1, 1, 1)
    assert cpu.memory_bytes > 0


def test_ports_that_tell_their_speed(tmp_path: Path) -> None:
    nics, notes = find_nics(_tree(tmp_path))
    assert nics == (NicFacts("eth0", 25e9 / 8, False, 1), NicFacts("mlx5_0/1", 400e9 / 8, True, None))
    assert notes == ("network port eth1 does not tell its speed: left out",)


def test_cpu_lists() -> None:
    assert cpu_list("0-2,7\n") == (0, 1, 2, 7)
    assert cpu_list("") == ()
    with pytest.raises(ValueError, match="invalid"):
        cpu_list("a-b")


HWLOC = """<?xml version="1.0" encoding="UTF-8"?>
<topology version="2.0">
 <object type="Machine" os_index="0" cpuset="0x0000000f">
  <object type="Package" os_index="0" cpuset="0x00000003"><info name="CPUModel" value="Chip X"/>
   <object type="NUMANode" os_index="0" cpuset="0x00000003" local_memory="8589934592"/>
   <object type="L3Cache" cache_size="33554432" cache_type="0">
    <object type="L1Cache" cache_size="32768" cache_type="1">
     <object type="Core" os_index="0"><object type="PU" os_index="0"/><object type="PU" os_index="1"/></object>
    </object></object></object>
  <object type="Package" os_index="1" cpuset="0x0000000c">
   <object type="NUMANode" os_index="1" cpuset="0x0000000c" local_memory="8589934592"/>
   <object type="L3Cache" cache_size="33554432" cache_type="0">
    <object type="L1Cache" cache_size="32768" cache_type="1">
     <object type="Core" os_index="0"><object type="PU" os_index="2"/><object type="PU" os_index="3"/></object>
    </object></object></object>
 </object>
</topology>"""


def test_hwloc_is_believed_where_it_is_there(tmp_path: Path) -> None:
    cpu = read_hwloc(HWLOC, find_cpu(_tree(tmp_path)))
    assert (cpu.model, cpu.sockets, cpu.cores, cpu.threads, cpu.seen_by) == ("Chip X", 2, 2, 4, "hwloc")
    assert [(d.memory_bytes, d.cpus) for d in cpu.numa] == [(8 * GIB, (0, 1)), (8 * GIB, (2, 3))]
    assert cpu.numa[0].distances == (10, 21)
    assert [(c.level, c.kind, c.count) for c in cpu.caches] == [(1, "data", 2), (3, "unified", 2)]
    assert cpu.max_mhz == 3500  # what the XML does not hold


@pytest.mark.parametrize("text", ["", "<a", "<topology/>"])
def test_what_hwloc_did_not_write_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(HwlocError):
        read_hwloc(text, find_cpu(tmp_path))


def _gpu(index: int, **changed: object) -> GpuFacts:
    known = GpuFacts(
        index=index, name="NVIDIA H100 80GB HBM3", uuid=f"GPU-{index}", pci_bus_id=f"0000:{index:02x}:00.0",
        memory_bytes=85520809984, power_limit_w=700.0, enforced_power_limit_w=700.0, power_w=71.0, busy=False,
        cores=16896, max_sm_mhz=1980, max_memory_mhz=2619, bus_width_bits=5120, pcie_generation=5, pcie_width=16,
        max_pcie_width=16, numa=index // 4, mig=False,
    )  # fmt: skip
    return replace(known, **changed)  # type: ignore[arg-type]


def _facts(gpus: tuple[GpuFacts, ...] = (), **changed: object) -> MachineFacts:
    numa = tuple(NumaFacts(i, 32 * GIB, (2 * i, 2 * i + 1)) for i in range(2))
    cpu = CpuFacts("Xeon Test", "intel", 2, 4, 4, None, frozenset({"avx2"}), numa, (), "/sys")
    return replace(MachineFacts(cpu=cpu, gpus=gpus, driver="570"), **changed)  # type: ignore[arg-type]


def test_an_hgx_node_is_written_as_the_packaged_one(tmp_path: Path) -> None:
    gpus = tuple(_gpu(i) for i in range(8))
    links = tuple(NvLinkFacts(i, None, 18, 4, 450e9) for i in range(8))
    written = write_profile(_facts(gpus, nvlinks=links), "box")
    paths, topology = save(written, tmp_path / "box.yaml")
    assert [problem for path in paths for problem in problems_in(path)] == []
    assert list(topology.nodes) == ["local-0"]
    assert sum(d.profile.class_ == "gpu" for d in topology.devices.values()) == 8
    assert topology.bandwidth_bytes_per_s("local-0/gpu0", "local-0/gpu7") == 450e9
    gpu = load_device(str(tmp_path / "devices/h100-sxm.yaml"))
    assert (gpu.idle_watts, gpu.memory_bytes) == (71.0, 85520809984)
    assert gpu.source_of("flops").startswith(NOT_MEASURED)
    result = compare(load_cluster("homogeneous-h100-32"), topology)
    assert result.equal, result.differences
    assert any("flops" in entry for entry in result.skipped)


def test_an_unknown_gpu_is_derived_from_what_it_tells(tmp_path: Path) -> None:
    written = write_profile(_facts((_gpu(0, name="NVIDIA Z9 Pro", numa=0),)), "box")
    save(written, tmp_path / "box.yaml")
    gpu = load_device(str(tmp_path / "devices/z9-pro.yaml"))
    assert gpu.memory_bytes_per_s == pytest.approx(3.352e12, rel=1e-3)
    assert gpu.flops["fp32"] == pytest.approx(66.9e12, rel=1e-3)
    assert "derived" in gpu.source_of("flops")


def test_a_gpu_that_tells_nothing_gets_marked_stand_ins(tmp_path: Path) -> None:
    mute = _gpu(
        0,
        name="Mystery",
        power_limit_w=None,
        power_w=None,
        cores=None,
        bus_width_bits=None,
        pcie_generation=None,
    )
    save(write_profile(_facts((mute,)), "box"), tmp_path / "box.yaml")
    gpu = load_device(str(tmp_path / "devices/mystery.yaml"))
    for figure in ("memory_bytes_per_s", "flops", "tdp_watts", "idle_watts", "usd_per_hour"):
        assert gpu.source_of(figure).startswith(NOT_MEASURED), figure


def test_what_the_format_cannot_say_is_noted() -> None:
    uneven = tuple(_gpu(i, numa=0, pcie_width=16 if i else 8) for i in range(4))
    notes = write_profile(_facts(uneven), "box").notes
    assert any("spreads devices evenly" in note for note in notes)
    assert any("unlike PCIe links" in note for note in notes)


def test_measurements_take_the_place_of_stand_ins(tmp_path: Path) -> None:
    timed = Measured((50e9, 40e9), 20e9, 2e12, 1e12, 3e9)
    written = write_profile(_facts(measured=timed), "box", usd_per_hour=2.0)
    _, topology = save(written, tmp_path / "box.yaml")
    cpu = load_device(str(tmp_path / "devices/box-cpu.yaml"))
    assert (cpu.memory_bytes_per_s, cpu.flops["fp32"], cpu.usd_per_hour) == (40e9, 1e12, 1.0)
    assert topology.bandwidth_bytes_per_s("local-0/cpu0", "local-0/cpu1") == 20e9
    assert not any("memory_bytes_per_s" in entry for entry in written.not_measured())


@pytest.mark.parametrize("name", ["Box.yaml", "box.txt", "my box.yaml"])
def test_files_that_cannot_be_a_profile_are_refused(name: str) -> None:
    with pytest.raises(ProfileError, match="--out"):
        cluster_name(Path(name))


def test_probe_writes_a_profile_of_this_machine(tmp_path: Path) -> None:
    out = tmp_path / "here.yaml"
    result = runner.invoke(app, ["probe", "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert str(out) in shown["files"]
    assert "devices/here-cpu.yaml: usd_per_hour" in shown["not_measured"]
    topology = load_cluster(str(out))
    assert (
        topology.devices["local-0/cpu0"].profile.memory_bytes
        == shown["found"]["cpu"]["numa"][0]["memory_bytes"]
    )
    refused = runner.invoke(app, ["probe", "--out", str(tmp_path / "Here.yaml")])
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: --out: 'Here' is no profile name")


@pytest.mark.slow
def test_short_measurements_are_of_the_right_order(tmp_path: Path) -> None:
    result = runner.invoke(app, ["probe", "--measure", "--json"])
    assert result.exit_code == 0, result.output
    timed = json.loads(result.stdout)["found"]["measured"]
    assert 1e8 < min(timed["memory_bytes_per_s"]) < 1e13
    assert 1e8 < timed["fp64_flops"] < 1e15
    assert timed["load_bytes_per_s"] > 1e7


@pytest.mark.slow
@pytest.mark.skipif(fake.library() is None, reason="no C compiler to build the fake driver library with")
def test_probe_sees_gpus_and_their_links(tmp_path: Path) -> None:
    machine = fake.Machine(tmp_path / "state")
    for slot in range(4):
        gpu = machine.plug(slot, "a10", nvlinks=2, nvlink_version=3, nvlink_mbps=14062, pcie_width=8)
        gpu.nvlink_peer[0] = gpu.nvlink_peer[1] = slot ^ 1
    out = tmp_path / "box.yaml"
    done = fake.run_python(
        ["-m", "physical.telemetry.cli", "probe", "--out", str(out), "--json"], machine.path
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["found"]
    assert [gpu["name"] for gpu in found["gpus"]] == ["NVIDIA A10"] * 4
    assert found["pairs"][0] == {
        "a": 0,
        "b": 1,
        "common": "host-bridge",
        "peer_to_peer": False,
        "nvlink": True,
    }
    topology = load_cluster(str(out))
    assert topology.bandwidth_bytes_per_s("local-0/gpu0", "local-0/gpu1") == pytest.approx(2 * 14.062e9)
    assert topology.bandwidth_bytes_per_s("local-0/gpu0", "local-0/gpu2") == 15.75e9  # eight lanes
    assert topology.node_shape("local-0").fabric is not None
