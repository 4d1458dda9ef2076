"""Deployments as values: printable, the same after a trip through YAML, judged by the gate's rules."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from loop.contracts import Plan, ReplicaSpec, Role
from physical.gate import DeployReplicas, Gate, GateRules, MutationError, RefusedError, Rule
from physical.gate.actuator import ActuatorError, Look, State
from physical.gate.gate import FailedError
from physical.gate.mutations import Mutation, from_dict, to_dict
from physical.gate.plan_actions import PlanFileError, deployment_of, read_plan
from physical.gate.replicas import as_plain, changes_in_words, replica_name, replicas_of

ONE = ReplicaSpec("chat", ("n0/gpu0",), max_num_seqs=8)
TWO = ReplicaSpec("chat", ("n0/gpu1",))
WIDE = ReplicaSpec("big", ("n0/gpu2", "n0/gpu3"), tp=2, role=Role.MIXED)


class Shelf:
    """A world of replicas that come and go at once; `broken`: they come, and then it says that it failed."""

    def __init__(self, *replicas: ReplicaSpec) -> None:
        self.replicas = replicas
        self.broken = False

    def look(self, mutation: Mutation) -> Look:
        assert isinstance(mutation, DeployReplicas)
        state = {"replicas": [as_plain(spec) for spec in self.replicas]}
        return Look(already=self.replicas == mutation.replicas, state=state, words="as they are")

    def apply(self, mutation: Mutation, state: State, token: str) -> State:
        assert isinstance(mutation, DeployReplicas)
        self.replicas = mutation.replicas
        if self.broken:
            raise ActuatorError("out of memory")
        return {}

    def undo(self, mutation: Mutation, state: State, token: str) -> None:
        self.replicas = replicas_of(state["replicas"])

    def running(self) -> dict[str, int]:
        return {replica_name(spec): 7 for spec in self.replicas}


def test_a_deployment_is_the_same_after_a_trip_through_yaml() -> None:
    wanted = DeployReplicas((ONE, WIDE), "by hand")
    back = from_dict(yaml.safe_load(yaml.safe_dump(to_dict(wanted))))
    assert back == wanted
    assert str(back) == "deploy 2 replicas: chat@n0/gpu0, big@n0/gpu2+n0/gpu3:tp2,pp1"
    assert from_dict(
        {"kind": "deploy", "replicas": [{"model": "m", "devices": ["a/cpu0"]}]}
    ) == DeployReplicas((ReplicaSpec("m", ("a/cpu0",)),))


@pytest.mark.parametrize(
    "replicas",
    [
        "all",
        [3],
        [{"model": "m"}],
        [{"model": "m", "devices": ["a"], "cores": 2}],
        [{"model": 4, "devices": ["a"]}],
    ],
)
def test_nonsense_is_refused_by_name(replicas: object) -> None:
    with pytest.raises(MutationError, match="deploy: replicas cannot be"):
        from_dict({"kind": "deploy", "replicas": replicas})


def test_what_it_takes_is_said_in_words() -> None:
    bigger = ReplicaSpec("chat", ("n0/gpu0",), max_num_seqs=16)
    said = changes_in_words(Plan((ONE, TWO)), Plan((bigger, WIDE)))
    assert said == (
        "start big@n0/gpu2+n0/gpu3:tp2,pp1, let chat@n0/gpu0 run 16 sequences, 8192 tokens a step, end chat@n0/gpu1"
    )
    assert changes_in_words(Plan((ONE,)), Plan((ONE,))) == "nothing"


def test_the_gate_carries_it_out_and_takes_it_back_when_it_fails(tmp_path: Path) -> None:
    shelf = Shelf(ONE)
    gate = Gate(shelf, tmp_path / "journal.jsonl", GateRules(max_share_stopped=1.0))
    assert gate.apply([DeployReplicas((ONE, TWO))]).changed
    assert not gate.apply([DeployReplicas((ONE, TWO))]).changed
    shelf.broken = True
    with pytest.raises(FailedError, match="out of memory; everything before it was undone"):
        gate.apply([DeployReplicas((WIDE,))])
    assert shelf.replicas == (ONE, TWO)


def test_rules_count_replicas(tmp_path: Path) -> None:
    shelf = Shelf(ONE, TWO, WIDE)
    gate = Gate(shelf, tmp_path / "journal.jsonl", GateRules(max_share_stopped=0.5, min_running=2))
    with pytest.raises(RefusedError) as refused:
        gate.apply([DeployReplicas((ONE,))])
    assert {r.rule for r in refused.value.refusals} == {Rule.BLAST_RADIUS, Rule.FLOOR}
    assert shelf.replicas == (ONE, TWO, WIDE)
    gate.apply([DeployReplicas((ONE, TWO))])
    assert shelf.replicas == (ONE, TWO)


def written(folder: Path, text: str) -> Path:
    path = folder / "plan.yaml"
    path.write_text(text)
    return path


def test_a_plan_file_is_a_deployment(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
models:
  - model: big
    replicas:
      - stages:
          - {devices: [n0/gpu0, n0/gpu1], layers: 16}
          - {devices: [n0/gpu2, n0/gpu3], layers: 16}
""",
    )
    found = deployment_of(path, read_plan(path))
    devices = ("n0/gpu0", "n0/gpu1", "n0/gpu2", "n0/gpu3")
    assert found.replicas == (ReplicaSpec("big", devices, tp=2, pp=2),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: []", "no replicas in it"),
        ("models: [{model: m, replicas: [{}]}]", "not as `physical plan` writes them"),
        (
            "models: [{model: m, replicas: [{stages: [{devices: [a], layers: 9}, {devices: [b], layers: 3}]}]}]",
            "evenly",
        ),
        (
            "models: [{model: m, replicas: [{stages: [{devices: [a], layers: 6}, {devices: [b, c], layers: 6}]}]}]",
            "alike",
        ),
        ("actions: [{kind: stop, name: web}]", "one action of kind `deploy`"),
    ],
)
def test_a_plan_file_that_no_server_can_follow_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(PlanFileError, match=said):
        deployment_of(path, read_plan(path))
