import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hw_profiles import (
    ProfileError,
    anchored,
    list_clusters,
    list_devices,
    list_models,
    load_cluster,
    load_device,
    load_model,
)
from hw_profiles.loader import problems_in
from tests.examples import up_to

from .conftest import CLUSTER, DEVICE, NODE

Write = Callable[..., Path]


def test_everything_promised_is_there() -> None:
    assert set(list_devices()) >= {
        "h100-sxm", "h200", "b200", "a100-sxm-40", "a100-sxm-80", "l40s", "l4", "a10g", "t4", "v100",
        "rtx-4090", "rtx-pro-6000", "mi300x", "cpu-socket", "ecp5-25k", "ecp5-45k",
    }  # fmt: skip
    assert set(list_clusters()) >= {"homogeneous-h100-32", "mixed-64", "elastic-a100", "laptop-2"}
    assert set(list_models()) >= {
        "llama-2-7b", "llama-2-70b", "llama-3.1-8b", "llama-3.1-70b", "qwen3-32b", "qwen3-30b-a3b",
        "tiny-llama-4m",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("meta-llama/Llama-3.1-8B", "llama-3.1-8b"),
        ("meta-llama/Meta-Llama-3.1-70B-Instruct", "llama-3.1-70b"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "qwen3-30b-a3b"),
        ("LLAMA-2-7B", "llama-2-7b"),
    ],
)
def test_models_answer_to_their_repository_name(alias: str, name: str) -> None:
    assert load_model(alias) is load_model(name)


def test_paths_are_anchored_and_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [anchored(n) for n in ("mixed-64", "qwen3-32b@fp8", "Qwen/Qwen3-32B")] == [
        "mixed-64",
        "qwen3-32b@fp8",
        "Qwen/Qwen3-32B",
    ]
    assert anchored("my/own.yaml") == str(tmp_path / "my" / "own.yaml")
    assert anchored("own.yml@fp8") == f"{tmp_path / 'own.yml'}@fp8"
    assert anchored(str(tmp_path / "a@b" / "own.yaml")) == str(tmp_path / "a@b" / "own.yaml")


def test_a_weight_type_stands_behind_the_last_at_sign(tmp_path: Path) -> None:
    folder = tmp_path / "me@office"
    folder.mkdir()
    path = folder / "tiny-llama.yaml"
    shutil.copy(str(files("hw_profiles") / "data" / "models" / "tiny-llama.yaml"), path)
    assert load_model(str(path)) == load_model("tiny-llama")
    assert load_model(f"{path}@fp8") == load_model("tiny-llama@fp8")
    with pytest.raises(ProfileError, match="unknown weight type ''"):
        load_model("tiny-llama@")


def test_device_aliases() -> None:
    assert load_device("H100") is load_device("h100-sxm")
    assert load_device("a100-80").name == "a100-sxm-80"


def test_aliases_are_unique() -> None:
    for names, load in ((list_models(), load_model), (list_devices(), load_device)):
        seen = [alias.lower() for name in names for alias in load(name).aliases] + names
        assert sorted(seen) == sorted(set(seen))


@pytest.mark.parametrize(
    ("load", "name", "message"),
    [
        (load_model, "llama-3.1-80b", "unknown model 'llama-3.1-80b' (did you mean 'llama-3.1-8b'?)"),
        (load_device, "zx81", "unknown device 'zx81' (known: a100-sxm-40,"),
        (load_cluster, "mixed64", "unknown cluster 'mixed64' (did you mean 'mixed-64'?)"),
        (load_cluster, "nowhere.yaml", "nowhere.yaml: cannot be read: No such file or directory"),
        (load_model, "", "unknown model ''"),
        (load_model, "../models/llama-2-7b", "unknown model '../models/llama-2-7b'"),
    ],
)
def test_unknown_name_is_refused_with_a_hint(load: Callable[[str], object], name: str, message: str) -> None:
    with pytest.raises(ProfileError) as caught:
        load(name)
    assert message in str(caught.value)


def test_users_cluster_finds_its_own_parts_and_the_packaged_ones(write: Write) -> None:
    write("devices/toy.yaml", DEVICE)
    write(
        "nodes/toy-x2.yaml",
        NODE,
        ("  - {device: toy, count: 2}", "  - {device: plaything, count: 1}\n  - {device: l4, count: 1}"),
    )
    topology = load_cluster(str(write("toys.yaml", CLUSTER)))
    assert [(d.id, d.kind) for d in topology.devices.values()] == [
        ("a-0/gpu0", "toy"), ("a-0/gpu1", "l4"), ("a-1/gpu0", "toy"), ("a-1/gpu1", "l4"),
    ]  # fmt: skip
    with pytest.raises(ProfileError, match="unknown device 'toy'"):
        load_device("toy")


def test_mistake_in_a_part_names_the_part(write: Write) -> None:
    write("nodes/toy-x2.yaml", NODE)
    device = write("devices/toy.yaml", DEVICE, ("vendor:", "vendr:"))
    cluster = write("clusters/toys.yaml", CLUSTER)
    with pytest.raises(ProfileError) as caught:
        load_cluster(str(cluster))
    assert f"{device}:6: unknown key 'vendr' (did you mean 'vendor'?)" in map(str, caught.value.problems)


def test_file_name_and_name_must_agree(write: Write) -> None:
    write("devices/top.yaml", DEVICE)
    write("nodes/toy-x2.yaml", NODE, ("device: toy", "device: top"))
    with pytest.raises(ProfileError, match=r"top\.yaml:2: name 'toy' differs from the file name 'top'"):
        load_cluster(str(write("clusters/toys.yaml", CLUSTER)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1, 2]",
        b"just text",
        b"\xff\xfe\x00",
        b"a: &x [*x]",
        b"<<: {a: 1}",
        b"a: " + b"[" * 5000,
        b"a: " + b"[" * 50 + b"]" * 50,
    ],
)
def test_files_that_are_no_profile_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)
    with pytest.raises(ProfileError) as caught:
        load_model(str(path))
    assert str(path) in str(caught.value)


@settings(
    max_examples=up_to(120),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    base=st.sampled_from([DEVICE, NODE, CLUSTER]),
    at=st.floats(0, 1),
    cut=st.integers(0, 12),
    insert=st.text(st.sampled_from("ab1-:{}[],&*!|>'\"#% \n.e_\t\u00e9"), max_size=6),
)
def test_damaged_file_gives_problems_with_lines_and_nothing_else(
    write: Write, base: str, at: float, cut: int, insert: str
) -> None:
    start = int(at * len(base))
    damaged = base[:start] + insert + base[start + cut :]
    path = write("damaged.yaml", damaged)
    for problem in problems_in(path):
        assert problem.file == str(path)
        assert 0 <= problem.line <= damaged.count("\n") + 1
        assert "\n" not in str(problem)


def test_number_of_thousands_of_digits_is_no_crash(write: Write) -> None:
    path = write("toy.yaml", DEVICE, ("8_000_000_000", "9" * 9000))
    assert all("memory_bytes" in problem.message for problem in problems_in(path))


def test_import_is_cheap() -> None:
    heavy = "import hw_profiles, sys; print([m for m in ('networkx', 'pydantic', 'yaml', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
