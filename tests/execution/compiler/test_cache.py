"""The artifact cache: whole or absent, whatever happens to writers, readers and disks."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from execution.compiler.cache import ArtifactCache, CacheError, CacheFullError, default_root
from execution.compiler.machine import Machine, this_machine
from execution.compiler.port import Bucket, Recipe, Subject, TensorSpec
from execution.compiler.verdict import Numerics, Speed, Trial, Verdict, Worst
from tests.examples import up_to

MACHINE = Machine("cpu of a test", "avx2", 2, "Linux x86_64")
SUBJECT = Subject(
    "rms_norm",
    (TensorSpec((16, 64), "float32"),),
    (TensorSpec((64,), "float32"),),
    Bucket(1, 16),
    1,
    source=b"s",
)
RECIPE = Recipe("inductor", "default")
VERDICT = Verdict(
    True,
    "accepted",
    "faster",
    Trial(True, "ran", 6, 0.5, ("inputs unchanged",)),
    Numerics(
        True, "within", 3, 300, Worst("nan", (1, 2), float("nan"), 1.0, 0.5, 1.0), 1e-7, 2e-7, ("strided",)
    ),
    True,
    Speed(True, "faster", 2.0, 1.5, 3.0, 0.001, 12, 2e-5, 1e-5, 1, 1.03),
)


@pytest.fixture
def cache(tmp_path: Path) -> ArtifactCache:
    return ArtifactCache(tmp_path / "cache", machine=MACHINE)


def fill(folder: Path, seed: int = 0, size: int = 3000) -> dict[str, bytes]:
    dice = random.Random(seed)
    files = {"kernel.so": dice.randbytes(size), "deep/er/meta.json": b"{}", "empty": b""}
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return files


def put(cache: ArtifactCache, key: str, seed: int = 0, size: int = 3000) -> None:
    with cache.staging() as folder:
        fill(folder, seed, size)
        cache.publish(key, folder, {"seed": seed}).close()


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def in_child(work: Callable[[], None]) -> int:
    """Exit status of a forked child that does it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_what_is_published_is_found_by_others(cache: ArtifactCache) -> None:
    key = cache.key(SUBJECT, RECIPE, {"torch": "2"})
    assert cache.get(key) is None
    with cache.staging() as folder:
        files = fill(folder)
        cache.publish(key, folder, {"made": "here"}).close()
    other = ArtifactCache(cache.root, machine=MACHINE)
    with other.get(key) or pytest.fail("not found") as entry:
        assert files_of(entry.folder) == files
        assert entry.meta == {"made": "here"}
    assert list((cache.root / "staging").iterdir()) == []


def test_the_key_is_made_of_all_that_matters(cache: ArtifactCache) -> None:
    versions = {"torch": "2", "cxx": "12"}
    seen = {cache.key(SUBJECT, RECIPE, versions)}
    assert cache.key(SUBJECT, RECIPE, dict(reversed(versions.items()))) in seen
    for subject in (
        replace(SUBJECT, threads=2),
        replace(SUBJECT, bucket=Bucket(1, 8)),
        replace(SUBJECT, source=b"t"),
        replace(SUBJECT, attrs=(("graph", "abc"),)),
        replace(SUBJECT, attrs=(("eps", 1e-5),)),
        replace(SUBJECT, fast_math=True),
        replace(SUBJECT, inputs=(TensorSpec((16, 64), "bfloat16"),)),
    ):
        seen.add(cache.key(subject, RECIPE, versions))
    for recipe in (
        Recipe("tvm", "default"),
        Recipe("inductor", "default", settings=(("freezing", True),)),
        Recipe("inductor", "default", pipeline="cse,dce"),
    ):
        seen.add(cache.key(SUBJECT, recipe, versions))
    seen.add(cache.key(SUBJECT, RECIPE, {"torch": "2.1", "cxx": "12"}))
    for machine in (
        replace(MACHINE, cpu="another"),
        replace(MACHINE, flags="avx512"),
        replace(MACHINE, cpus=64),
    ):
        seen.add(ArtifactCache(cache.root, machine=machine).key(SUBJECT, RECIPE, versions))
    assert len(seen) == 1 + 7 + 3 + 1 + 3


def test_this_machine_is_described() -> None:
    machine = this_machine()
    assert machine.cpu
    assert machine.cpus >= 1
    assert machine == this_machine()
    told = {name: getattr(machine, name) for name in machine.__slots__}
    assert machine.differs(told) == ""
    assert "another" in machine.differs({**told, "cpu": "another"})


def test_the_second_writer_takes_the_first_one_s(cache: ArtifactCache) -> None:
    with cache.staging() as one, cache.staging() as two:
        first, _ = fill(one, seed=1), fill(two, seed=2)
        cache.publish("aa11", one, {}).close()
        with cache.publish("aa11", two, {}) as entry:
            assert files_of(entry.folder) == first


@settings(
    max_examples=up_to(40), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_damage_is_found_removed_and_repaired(cache: ArtifactCache, data: st.DataObject) -> None:
    cache.clear()
    put(cache, "bb22")
    home = cache.root / "entries" / "bb" / "bb22"
    names = ["files/kernel.so", "files/deep/er/meta.json", "manifest.json"]
    path = home / data.draw(st.sampled_from(names))
    whole = path.read_bytes()
    how = data.draw(st.sampled_from(["flip", "cut", "grow", "gone", "emptied", "zeros"]))
    place = data.draw(st.integers(0, len(whole) - 1))
    if how == "gone":
        path.unlink()
    else:
        flipped = (
            whole[:place] + bytes([whole[place] ^ (1 << data.draw(st.integers(0, 7)))]) + whole[place + 1 :]
        )
        changed = {
            "flip": flipped,
            "cut": whole[:place],
            "grow": whole + b"x",
            "emptied": b"",
            "zeros": bytes(len(whole)),
        }
        path.write_bytes(changed[how])
    entry = cache.get("bb22")
    if entry is not None:  # a manifest with more blanks, or letters in another case, says the same
        assert path.name == "manifest.json"
        assert files_of(entry.folder)["kernel.so"] == random.Random(0).randbytes(3000)
        entry.close()
        return
    assert not home.exists()
    put(cache, "bb22")
    assert (cache.get("bb22") or pytest.fail("gone")).close() is None


def test_a_damaged_verdict_is_none_at_all(cache: ArtifactCache) -> None:
    put(cache, "cc33")
    cache.store_verdict("cc33", VERDICT)
    path = cache.root / "entries" / "cc" / "cc33" / "verdict.json"
    whole = path.read_bytes()
    assert repr(cache.verdict("cc33")) == repr(VERDICT)  # NaN is not equal to itself
    for damaged in (
        whole.replace(b"accepted", b"accepteD"),
        whole[:-5],
        b"",
        b"[]",
        b"\xff",
        whole.replace(b"cc33", b"cc34"),
    ):
        path.write_bytes(damaged)
        assert cache.verdict("cc33") is None
        assert not path.exists()


def test_a_refusal_is_kept_without_an_artifact(cache: ArtifactCache) -> None:
    refused = Verdict(False, "compile", "failed: no")
    cache.store_verdict("dd44", refused, {"recipe": "x"})
    assert cache.verdict("dd44") == refused
    assert cache.verdict("dd45") is None


def test_the_longest_unused_goes_first_and_what_is_in_use_stays(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, max_bytes=30_000, machine=MACHINE)
    for number in range(4):
        put(cache, f"ee{number}", seed=number, size=5000)
        os.utime(tmp_path / "entries" / "ee" / f"ee{number}" / "manifest.json", (number, number))
    held = cache.get("ee0")  # the oldest, used now
    assert held is not None
    os.utime(tmp_path / "entries" / "ee" / "ee0" / "manifest.json", (0, 0))
    put(cache, "ee5", size=18_000)
    left = {key for key, _, _, _ in cache.entries()}
    assert "ee0" in left
    assert "ee5" in left
    assert "ee1" not in left
    assert files_of(held.folder)["kernel.so"] == random.Random(0).randbytes(5000)
    held.close()
    assert cache.total_bytes() <= 31_000
    put(cache, "ee6", size=18_000)
    assert "ee0" not in {key for key, _, _, _ in cache.entries()}


def test_getting_is_using(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, machine=MACHINE)
    for number in range(3):
        put(cache, f"ff{number}")
        os.utime(tmp_path / "entries" / "ff" / f"ff{number}" / "manifest.json", (number, number))
    (cache.get("ff0") or pytest.fail("gone")).close()
    assert [key for key, _, _, _ in cache.entries()] == ["ff1", "ff2", "ff0"]


def test_what_is_larger_than_the_cache_is_refused(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, max_bytes=2000, machine=MACHINE)
    put(cache, "gg1", size=500)
    with pytest.raises(CacheFullError, match="more than it may hold"):
        put(cache, "gg2")
    assert [key for key, _, _, _ in cache.entries()] == ["gg1"]


def test_a_full_disk_leaves_what_was_there(cache: ArtifactCache) -> None:
    put(cache, "hh1")

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with cache.staging() as folder:
            fill(folder, size=200_000)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            with pytest.raises(CacheFullError):
                cache.publish("hh2", folder, {})

    assert in_child(work) == 0
    assert cache.get("hh2") is None
    assert (cache.get("hh1") or pytest.fail("gone")).close() is None
    assert list((cache.root / "staging").iterdir()) == []


def killed_at(cache: ArtifactCache, point: int) -> bool:
    """Publish in a child that is killed at its n-th call to the system; whether it came so far."""

    def work() -> None:
        left = point

        def counted(call: Callable[..., object]) -> Callable[..., object]:
            def run(*args: object, **kwargs: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)

            return run

        for name in ("open", "fsync", "rename", "mkdir", "unlink", "close"):
            setattr(os, name, counted(getattr(os, name)))
        for name in ("open", "write_text", "rename", "mkdir", "touch", "unlink"):
            setattr(Path, name, counted(getattr(Path, name)))
        with cache.staging() as folder:
            fill(folder)
            cache.publish("kk1", folder, {}).close()

    code = in_child(work)
    assert code in {0, -signal.SIGKILL}
    return code != 0


@pytest.mark.slow
def test_a_writer_killed_at_any_point_leaves_all_or_nothing(tmp_path: Path) -> None:
    point, seen = 0, set()
    while True:
        root = tmp_path / str(point)
        cache = ArtifactCache(root, machine=MACHINE)
        killed = killed_at(cache, point)
        again = ArtifactCache(root, machine=MACHINE)  # sweeps
        entry = again.get("kk1")
        seen.add(entry is not None)
        if entry is not None:
            assert files_of(entry.folder)["kernel.so"] == random.Random(0).randbytes(3000)
            entry.close()
        put(again, "kk1")
        assert (again.get("kk1") or pytest.fail("cannot be written any more")).close() is None
        if not killed:
            break
        point += 1
    assert point > 20
    assert seen == {True, False}


def crowd(root: Path, seed: int) -> None:
    """One of many processes: publishes, reads, throws out."""
    cache = ArtifactCache(root, max_bytes=25_000, machine=MACHINE)
    dice = random.Random(seed)
    for _ in range(40):
        number = dice.randrange(8)
        key = f"mm{number}"
        entry = cache.get(key)
        if entry is None:
            put(cache, key, seed=number, size=4000)
            continue
        with entry:
            assert files_of(entry.folder)["kernel.so"] == random.Random(number).randbytes(4000)
            if dice.random() < 0.2:
                cache.remove(key)
            assert files_of(entry.folder)["kernel.so"] == random.Random(number).randbytes(4000)


@pytest.mark.slow
def test_many_processes_at_once(tmp_path: Path) -> None:
    children = []
    for seed in range(4):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                crowd(tmp_path, seed)
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert codes == [0] * 4
    cache = ArtifactCache(tmp_path, machine=MACHINE)
    for key, _, _, _ in cache.entries():
        assert (cache.get(key) or pytest.fail(f"{key} is damaged")).close() is None
    assert list((tmp_path / "staging").iterdir()) == []


def test_what_an_interrupted_compilation_left_is_there_for_the_next(cache: ArtifactCache) -> None:
    def interrupted() -> None:
        with cache.staging("nn1") as folder:
            (folder / "resume").mkdir()
            (folder / "resume" / "database").write_text("32 trials")
            (folder / "kernel.so").write_text("half of it")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with cache.staging("nn1") as folder:
        assert files_of(folder) == {"resume/database": b"32 trials"}
        fill(folder)
        cache.publish("nn1", folder, {}).close()
    with cache.get("nn1") or pytest.fail("gone") as entry:
        assert "resume/database" not in files_of(entry.folder)
    with cache.staging("nn1") as folder:
        assert files_of(folder) == {}


def test_old_leavings_are_swept(cache: ArtifactCache) -> None:
    old = cache.root / "staging" / "old"
    old.mkdir()
    os.utime(old, (time.time() - 7200,) * 2)
    (cache.root / "staging" / "young").mkdir()
    with cache.staging() as held:
        ArtifactCache(cache.root, machine=MACHINE)
        assert held.is_dir()
    assert [p.name for p in (cache.root / "staging").iterdir()] == ["young"]


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def test_code_is_not_loaded_from_where_others_may_write(open_folder: Path) -> None:
    with pytest.raises(CacheError, match="others may write"):
        ArtifactCache(open_folder)


def test_bad_places_and_sizes_are_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="file"):
        ArtifactCache(tmp_path / "file" / "cache")
    with pytest.raises(CacheError, match="max_bytes"):
        ArtifactCache(tmp_path, max_bytes=0)


def test_the_default_place_can_be_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOPOIESIS_CACHE_DIR", str(tmp_path))
    assert default_root() == tmp_path / "kernels"
    monkeypatch.delenv("AUTOPOIESIS_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_root() == tmp_path / "xdg" / "autopoiesis" / "kernels"
