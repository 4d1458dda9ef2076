"""The gate's order of events, refusals and undo, on a world that is a dictionary and can be told to fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from physical.gate import (
    ActuatorError,
    Gate,
    GateRules,
    Mutation,
    MutationError,
    PinCpus,
    RefusedError,
    Resource,
    Rule,
    SetLimit,
    SetNice,
    SetPower,
    StartProcess,
    StopProcess,
)
from physical.gate.actuator import Look
from physical.gate.gate import FailedError
from physical.gate.journal import GateJournal, JournalError, read_records
from physical.gate.mutations import from_dict, to_dict


class Killed(BaseException):
    """The gate's process dies here: nothing of it runs any more."""


class World:
    """An actuator over a dictionary; `fail_at` counts calls of apply, `die_at` all that touch it."""

    def __init__(self, values: dict[str, Any] | None = None) -> None:
        self.values: dict[str, Any] = dict(values or {})
        self.fail_at: int | None = None
        self.fail_undo = False
        self.applied: list[str] = []

    def look(self, mutation: Mutation) -> Look:
        key, wanted = self._wanted(mutation)
        now = self.values.get(key)
        return Look(already=now == wanted, state={"was": now}, words=f"{key} is {now}")

    def apply(self, mutation: Mutation, state: dict[str, Any], token: str) -> dict[str, Any]:
        if self.fail_at is not None and len(self.applied) == self.fail_at:
            raise ActuatorError("the world would not")
        key, wanted = self._wanted(mutation)
        self.values[key] = wanted
        self.applied.append(str(mutation))
        return {}

    def undo(self, mutation: Mutation, state: dict[str, Any], token: str) -> None:
        if self.fail_undo:
            raise ActuatorError("no way back")
        key, _ = self._wanted(mutation)
        if state["was"] is None:
            self.values.pop(key, None)
        else:
            self.values[key] = state["was"]

    def running(self) -> dict[str, int]:
        return {key[4:]: n for n, key in enumerate(sorted(self.values), 5000) if key.startswith("run/")}

    def _wanted(self, mutation: Mutation) -> tuple[str, Any]:
        if isinstance(mutation, StartProcess):
            return f"run/{mutation.name}", list(mutation.command)
        if isinstance(mutation, StopProcess):
            return f"run/{mutation.name}", None
        if isinstance(mutation, SetNice):
            return f"nice/{mutation.target}", mutation.nice
        if isinstance(mutation, SetPower):
            return f"watts/{mutation.device}", mutation.watts
        raise AssertionError(mutation)


def gate_on(world: World, path: Path, rules: GateRules | None = None, now_s: float = 100.0) -> Gate:
    tokens: Iterator[int] = count()
    return Gate(
        world,
        path / "journal.jsonl",
        rules,
        clock=lambda: now_s,
        token=lambda: f"t{next(tokens)}-{len(list(read_records(path / 'journal.jsonl')))}",
    )


A = StartProcess("a", ("run", "a"))
B = StartProcess("b", ("run", "b"))
PLAN = [A, B, SetNice("a", 5)]
AFTER = {"run/a": ["run", "a"], "run/b": ["run", "b"], "nice/a": 5}


def events(path: Path) -> list[str]:
    return [record["event"] for record in read_records(path / "journal.jsonl")]


def test_a_plan_is_journaled_before_and_after_each_step(tmp_path: Path) -> None:
    world = World()
    done = gate_on(world, tmp_path).apply(PLAN)
    assert world.values == AFTER
    assert done.changed == tuple(PLAN)
    assert events(tmp_path) == ["begin", *["before", "after"] * 3, "end"]
    assert [r["outcome"] for r in read_records(tmp_path / "journal.jsonl") if r["event"] == "end"] == [
        "applied"
    ]


def test_the_same_plan_again_changes_nothing(tmp_path: Path) -> None:
    world = World()
    gate_on(world, tmp_path).apply(PLAN)
    before = events(tmp_path)
    done = gate_on(world, tmp_path).apply(PLAN)
    assert done.changed == ()
    assert done.unchanged == tuple(PLAN)
    assert len(world.applied) == 3
    assert events(tmp_path) == before


def test_a_dry_run_touches_neither_world_nor_disk(tmp_path: Path) -> None:
    world = World({"run/a": ["run", "a"]})
    shown = gate_on(world, tmp_path / "none").dry_run(PLAN)
    assert [step.needed for step in shown.steps] == [False, True, True]
    assert shown.steps[1].undo == "ending b"
    assert world.applied == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failing_step_undoes_those_before_it(tmp_path: Path, failing: int) -> None:
    world = World({"nice/a": 1})
    world.fail_at = failing
    with pytest.raises(FailedError, match="the world would not; everything before it was undone"):
        gate_on(world, tmp_path).apply(PLAN)
    assert world.values == {"nice/a": 1}
    assert events(tmp_path)[-1] == "end"
    world.fail_at = None
    gate_on(world, tmp_path).apply(PLAN)
    assert world.values == AFTER


def test_what_cannot_be_undone_is_said_and_tried_again(tmp_path: Path) -> None:
    world = World()
    world.fail_at, world.fail_undo = 1, True
    with pytest.raises(FailedError, match=r"NOT undone: .*start a: run a: no way back"):
        gate_on(world, tmp_path).apply(PLAN)
    world.fail_at = None
    with pytest.raises(FailedError, match="cannot be undone"):
        gate_on(world, tmp_path).apply(PLAN)
    world.fail_undo = False
    done = gate_on(world, tmp_path).apply([B])
    assert done.recovered == ("start a: run a", "start b: run b")
    assert world.values == {"run/b": ["run", "b"]}


@pytest.mark.parametrize("late", [False, True])
def test_a_gate_killed_anywhere_leaves_nothing_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """At each write to the journal in turn, before (or after) the line is there; then the plan is applied again."""
    real = GateJournal.write
    for dying in range(8):  # begin, three times before and after, end
        folder = tmp_path / str(dying)
        world, writes = World({"nice/a": 1}), count()

        def write(
            self: GateJournal,
            event: str,
            *,
            writes: Iterator[int] = writes,
            dying: int = dying,
            **values: Any,
        ) -> None:
            if next(writes) >= dying:  # dead: neither this line nor any later one
                if late:
                    monkeypatch.setattr(GateJournal, "write", _dead)
                    real(self, event, **values)
                raise Killed
            real(self, event, **values)

        def _dead(*_: Any, **__: Any) -> None:
            raise Killed

        monkeypatch.setattr(GateJournal, "write", write)
        with pytest.raises(Killed):
            gate_on(world, folder).apply(PLAN)
        monkeypatch.setattr(GateJournal, "write", real)
        through = late and dying == 7
        recovered = gate_on(world, folder).recover()
        assert world.values == (AFTER if through else {"nice/a": 1}), f"killed at write {dying}"
        assert gate_on(world, folder).recover() == ()
        assert len(recovered) == (0 if through else (dying + late) // 2)
        done = gate_on(world, folder).apply(PLAN)
        assert len(done.changed) == (0 if through else 3)
        assert world.values == AFTER


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    world = World()
    gate_on(world, tmp_path).apply([A])
    journal = tmp_path / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"event": "beg')
    assert len(gate_on(world, tmp_path).dry_run([B]).steps) == 1
    gate_on(world, tmp_path).apply([B])
    assert journal.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_damage_elsewhere_is_no_journal(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"event": "begin"\n{"event": "end"}\n')
    with pytest.raises(JournalError, match="line 1: no record"):
        gate_on(World(), tmp_path).apply([A])


def test_there_is_one_gate_at_a_time(tmp_path: Path) -> None:
    with GateJournal(tmp_path / "journal.jsonl"), pytest.raises(JournalError, match="another gate"):
        gate_on(World(), tmp_path).apply([A])


def running(*names: str) -> World:
    return World({f"run/{name}": ["run", name] for name in names})


@pytest.mark.parametrize(
    ("world", "plan", "rules", "rule"),
    [
        (World(), [A, B], GateRules(changes_per_minute=1), Rule.RATE),
        (running("a", "b", "c"), [StopProcess("a"), StopProcess("b")], GateRules(), Rule.BLAST_RADIUS),
        (running("a", "b"), [StopProcess("a")], GateRules(min_running=2), Rule.FLOOR),
        (World(), [SetNice("a", 3)], GateRules(), Rule.ALLOW_LIST),
        (World(), [SetNice("pid:4242", 3)], GateRules(), Rule.ALLOW_LIST),
        (World(), [SetNice("pid:1", 3)], GateRules(allowed_pids=(1,)), Rule.PROTECTED),
        (running("a"), [SetNice("a", -3)], GateRules(), Rule.FLOOR),
        (World(), [A, A], GateRules(), Rule.CONFLICT),
        (World(), [SetPower("0", 200.0)], GateRules(), Rule.ALLOW_LIST),
        (World(), [SetPower("0", 50.0)], GateRules(allowed_devices=("0",)), Rule.FLOOR),
        (
            World(),
            [StartProcess("a", ("x",), limits={Resource.OPEN_FILES: 3})],
            GateRules(),
            Rule.FLOOR,
        ),
        (World(), [StartProcess("a", ("x",), cpus=(1,))], GateRules(allowed_cpus=(0,)), Rule.ALLOW_LIST),
    ],
)
def test_refusals_name_the_rule_and_nothing_is_done(
    tmp_path: Path, world: World, plan: list[Mutation], rules: GateRules, rule: Rule
) -> None:
    before = dict(world.values)
    with pytest.raises(RefusedError) as refused:
        gate_on(world, tmp_path, rules).apply(plan)
    assert rule in {refusal.rule for refusal in refused.value.refusals}
    assert world.values == before
    assert events(tmp_path) == ["refused"]
    assert rule in {r.rule for r in gate_on(world, tmp_path, rules).dry_run(plan).refusals}


def test_the_rate_counts_what_the_last_minute_changed(tmp_path: Path) -> None:
    world, rules = World(), GateRules(changes_per_minute=2)
    gate_on(world, tmp_path, rules, now_s=100.0).apply([A])
    gate_on(world, tmp_path, rules, now_s=130.0).apply([B])
    again = [SetNice("a", 1)]
    with pytest.raises(RefusedError, match="1 changes after 2"):
        gate_on(world, tmp_path, rules, now_s=150.0).apply(again)
    gate_on(world, tmp_path, rules, now_s=161.0).apply(again)
    assert world.values["nice/a"] == 1


def test_a_restart_within_the_plan_stops_nobody(tmp_path: Path) -> None:
    world = running("a", "b")
    plan = [StopProcess("a"), StopProcess("b"), A, B]
    gate_on(world, tmp_path, GateRules(min_running=2)).apply(plan)
    assert sorted(world.running()) == ["a", "b"]


EVERY = [
    StartProcess("a", ("x", "-y"), "/tmp", {"K": "v"}, (0, 1), 3, {Resource.OPEN_FILES: 99}),  # noqa: S108
    StopProcess("a", 2.5),
    PinCpus("pid:77", (1,)),
    SetNice("a", 4),
    SetLimit("a", Resource.MEMORY_BYTES, 1 << 30),
    SetPower("GPU-12", 250.0),
]


@pytest.mark.parametrize("mutation", EVERY, ids=lambda m: m.KIND)
def test_mutations_survive_json(mutation: Mutation) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(mutation)))) == mutation


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"kind": "reset"}, "no mutation of kind 'reset'"),
        ({"kind": "start", "name": "a"}, "missing 1 required positional argument: 'command'"),
        ({"kind": "start", "name": "a", "command": "ls"}, "command cannot be 'ls'"),
        ({"kind": "start", "name": "a/b", "command": ["ls"]}, "a name is letters"),
        ({"kind": "stop", "name": "a", "when": 1}, "no field 'when'"),
        ({"kind": "pin", "target": "a", "cpus": [0, 0]}, "must be different numbers"),
        ({"kind": "pin", "target": "pid:x", "cpus": [0]}, "pid:NUMBER is wanted"),
        ({"kind": "nice", "target": "a", "nice": 30}, "from -20 to 19"),
        ({"kind": "limit", "target": "a", "resource": "disk", "value": 1}, "no resource 'disk'"),
        ({"kind": "limit", "target": "a", "resource": "open_files", "value": 0}, "above 0"),
        ({"kind": "power", "device": 0, "watts": -1}, "more than 0"),
    ],
)
def test_nonsense_is_named(values: dict[str, Any], says: str) -> None:
    with pytest.raises(MutationError, match=says):
        from_dict(values)
