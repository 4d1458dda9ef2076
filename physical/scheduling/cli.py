"""`autopoiesis physical schedule`: a task graph on a machine, with its plan, bound and picture."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Task graphs over unlike units.", no_args_is_help=True, add_completion=False)

SCHEDULERS = ("planner", "heft", "peft", "lookahead", "dmda", "dmdas", "eager")


@app.callback()
def scheduling() -> None:
    """Task graphs over unlike units."""


@app.command()
def schedule(
    graph: Annotated[
        Path, typer.Argument(help="Task graph as JSON (docs/scheduling.md), or a WfCommons instance.")
    ],
    *,
    machine: Annotated[
        str, typer.Option(help="Machine as a JSON file, or a cluster of hw_profiles by name.")
    ],
    scheduler: Annotated[str, typer.Option(help=f"One of {', '.join(SCHEDULERS)}.")] = "planner",
    budget_s: Annotated[float, typer.Option(min=0.0, help="Time for the planner to search.")] = 1.0,
    polish_s: Annotated[
        float, typer.Option(min=0.0, help="Time for CP-SAT on graphs of at most 40 tasks.")
    ] = 0.0,
    speed: Annotated[
        list[str] | None,
        typer.Option(help="KIND=FACTOR: how much faster a kind is where the graph names none."),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="All schedulers side by side.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="Write a Gantt chart here, as SVG.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout, placements included.")
    ] = False,
) -> None:
    """Plan GRAPH on a machine in simulation: makespan, lower bound, and who does what when."""
    from physical.scheduling.bounds import area, critical_path_s  # noqa: PLC0415  # --help stays quick
    from physical.scheduling.draw import gantt  # noqa: PLC0415
    from physical.scheduling.graph import GraphError  # noqa: PLC0415
    from physical.scheduling.machine import MachineError  # noqa: PLC0415
    from physical.scheduling.trace import check, trace_of  # noqa: PLC0415

    if scheduler not in SCHEDULERS:
        raise _fail(f"no scheduler '{scheduler}': choose one of {', '.join(SCHEDULERS)}")
    try:
        problem = _problem(graph, machine, _speeds(speed or []))
    except (GraphError, MachineError, ValueError) as error:
        raise _fail(str(error)) from error
    names = SCHEDULERS if compare else (scheduler,)
    found, traces = {}, {}
    for name in names:
        began = time.perf_counter()
        plan = _schedulers(budget_s, polish_s)[name].plan(problem, seed)
        took_s = time.perf_counter() - began
        traces[name] = check(trace_of(plan))
        found[name] = (plan, took_s)
    bound = {"area_s": area(problem).bound_s, "critical_path_s": critical_path_s(problem)}
    shown = scheduler if scheduler in found else next(iter(found))
    chosen, trace = found[shown][0], traces[shown]
    if out is not None:
        try:
            out.write_text(gantt(trace, bound_s=max(bound.values())), encoding="utf-8")
        except OSError as error:
            raise _fail(f"{out}: {error.strerror or error}") from error
    if as_json:
        typer.echo(json.dumps(_as_json(problem, found, chosen, bound)))
        return
    _print(problem, found, trace, bound, out)


def _fail(message: str) -> typer.Exit:
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(2)


def _speeds(given: list[str]) -> dict[str, float]:
    result = {}
    for entry in given:
        kind, _, factor = entry.partition("=")
        try:
            result[kind] = float(factor)
        except ValueError:
            raise ValueError(f"--speed {entry}: write KIND=FACTOR, such as gpu=8") from None
        if not result[kind] > 0:
            raise ValueError(f"--speed {entry}: the factor must be positive")
    return result


def _problem(graph: Path, machine: str, speed: Mapping[str, float]) -> Any:
    from hw_profiles import ProfileError, load_cluster  # noqa: PLC0415
    from physical.scheduling.formats import read_graph, read_machine  # noqa: PLC0415
    from physical.scheduling.problem import Problem  # noqa: PLC0415
    from physical.scheduling.topology import machine_of  # noqa: PLC0415

    workload = read_graph(graph)
    if machine.endswith(".json"):
        made = read_machine(Path(machine))
    else:
        try:
            made = machine_of(load_cluster(machine))
        except ProfileError as error:
            raise ValueError(str(error)) from error
    return Problem(workload.graph, made, workload.durations(speed))


def _schedulers(budget_s: float, polish_s: float) -> dict[str, Any]:
    from physical.scheduling.heft import Heft, LookaheadHeft, Peft  # noqa: PLC0415
    from physical.scheduling.online import Online  # noqa: PLC0415
    from physical.scheduling.planner import Planner  # noqa: PLC0415
    from physical.scheduling.queues import Dmda, Dmdas, Eager  # noqa: PLC0415

    made: list[Any] = [Planner(budget_s, polish_s=polish_s), Heft(), Peft(), LookaheadHeft()]
    return {s.name: s for s in [*made, Online(Dmda), Online(Dmdas), Online(Eager)]}


def _as_json(
    problem: Any, found: Mapping[str, Any], chosen: Any, bound: Mapping[str, float]
) -> dict[str, Any]:
    names = [unit.name for unit in problem.machine.units]
    nodes = problem.machine.nodes
    return {
        "graph": problem.graph.name,
        "machine": problem.machine.name,
        "bound": dict(bound),
        "schedulers": {
            name: {"makespan_s": plan.makespan_s, "planning_s": took_s}
            for name, (plan, took_s) in found.items()
        },
        "scheduler": chosen.scheduler,
        "tasks": [
            {"name": task.name, "unit": names[unit], "start_s": start, "end_s": end}
            for task, unit, start, end in zip(
                problem.graph.tasks, chosen.unit, chosen.start_s, chosen.end_s, strict=True
            )
        ],
        "moves": [
            {
                "data": problem.graph.data[problem.version_data[move.version]].name,
                "from": nodes[move.source],
                "to": nodes[move.target],
                "start_s": move.start_s,
                "end_s": move.end_s,
            }
            for move in sorted(chosen.moves, key=lambda m: (m.start_s, m.end_s, m.version, m.target))
        ],
    }


def _print(
    problem: Any, found: Mapping[str, Any], trace: Any, bound: Mapping[str, float], out: Path | None
) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    console = Console()
    most = max(bound.values())
    table = Table("scheduler", "makespan s", "over bound", "planning s", box=None)
    for name, (plan, took_s) in found.items():
        over = f"{plan.makespan_s / most:.3f}" if most else "-"
        table.add_row(name, f"{plan.makespan_s:.6g}", over, f"{took_s:.2f}")
    console.print(
        f"{problem.graph.name}: {problem.tasks} tasks on {problem.machine.name}, {problem.units} units"
    )
    console.print(table)
    console.print(
        f"bound: area {bound['area_s']:.6g} s, critical path {bound['critical_path_s']:.6g} s; "
        f"{trace.name}: idle {trace.idle_share():.0%}, {len(trace.moves)} transfers of {trace.moved_bytes / 1e6:.6g} MB"
    )
    if out is not None:
        console.print(f"chart: {out}")


if __name__ == "__main__":
    app()
