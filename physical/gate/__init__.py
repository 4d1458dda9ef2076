"""The gate: the only place that changes anything physical. Dry run, limits, typed refusals, journal, undo."""

from physical.gate.actuator import Actuator, ActuatorError
from physical.gate.gate import Done, Gate, PlannedStep
from physical.gate.mutations import (
    Mutation,
    MutationError,
    PinCpus,
    Resource,
    SetLimit,
    SetNice,
    SetPower,
    StartProcess,
    StopProcess,
)
from physical.gate.replicas import DeployReplicas
from physical.gate.rules import GateRules, Refusal, RefusedError, Rule

__all__ = [
    "Actuator",
    "ActuatorError",
    "DeployReplicas",
    "Done",
    "Gate",
    "GateRules",
    "Mutation",
    "MutationError",
    "PinCpus",
    "PlannedStep",
    "Refusal",
    "RefusedError",
    "Resource",
    "Rule",
    "SetLimit",
    "SetNice",
    "SetPower",
    "StartProcess",
    "StopProcess",
]
