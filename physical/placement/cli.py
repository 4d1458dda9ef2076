"""`autopoiesis physical plan` and `physical apply`: where layers go, and carrying it out on this machine."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from physical.placement.apply_cli import apply

if TYPE_CHECKING:
    from rich.console import Console

    from physical.placement.planner import ClusterPlan, ModelPlan
    from physical.placement.units import Ask

app = typer.Typer(help="Placement of models on a cluster.", no_args_is_help=True, add_completion=False)

_UNITS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0}


def fail(message: str) -> typer.Exit:
    """Say what is wrong on stderr; the exit to raise."""
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(2)


@app.command()
def plan(
    cluster: Annotated[str, typer.Argument(help="Cluster by name, or a YAML file.")],
    models: Annotated[
        list[str], typer.Argument(help="Models by name, alias or YAML file; NAME@fp8 quantised.")
    ],
    *,
    demand: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL=REQ_PER_S", help="Requests/s of a model; without: as much as can be had."
        ),
    ] = None,
    input_tokens: Annotated[int, typer.Option("--input", min=1, help="Prompt tokens of a request.")] = 1024,
    output_tokens: Annotated[int, typer.Option("--output", min=1, help="Generated tokens.")] = 256,
    budget: Annotated[str, typer.Option(help="Time for planning, e.g. 10s or 2m.")] = "10s",
    tp: Annotated[list[int] | None, typer.Option(min=1, help="Tensor parallel sizes [1 2 4 8].")] = None,
    max_stages: Annotated[
        int | None, typer.Option(min=1, help="Groups of devices that a token passes at most [8].")
    ] = 8,
    partial: Annotated[
        bool, typer.Option("--partial", help="Let requests enter a stage in the middle of its layers.")
    ] = False,
    without: Annotated[
        list[str] | None, typer.Option(metavar="DEVICE", help="Leave a device out, by id.")
    ] = None,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Sequences decoding at once in a stage.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="For whatever is random.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the plan to this YAML file.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Draw devices, layers and flow to this file.")] = None,
) -> None:
    """Which devices hold which layers, how requests flow, what binds, and what one more device would bring."""
    # Here, since numpy, scipy and networkx take longer to import than `--help` should.
    from hw_profiles import ProfileError, load_cluster  # noqa: PLC0415
    from hw_profiles.performance import PerformanceModel  # noqa: PLC0415
    from hw_profiles.performance.coefficients import CoefficientsError  # noqa: PLC0415
    from physical.placement import planner  # noqa: PLC0415
    from physical.placement.problem import PlacementError  # noqa: PLC0415

    budget_s = seconds(budget)
    for path in (out, svg):
        if path is not None and not path.absolute().parent.is_dir():
            raise fail(f"cannot write {path}: there is no directory {path.absolute().parent}")
    try:
        topology = load_cluster(cluster)
        asks = _asks(models, demand or [], input_tokens, output_tokens)
        performance = PerformanceModel.load()
        with _working(budget_s, quiet=as_json):
            made = planner.plan(
                topology,
                asks,
                performance,
                budget_s=budget_s,
                tps=tuple(tp or (1, 2, 4, 8)),
                max_stages=max_stages,
                max_num_seqs=max_num_seqs,
                partial=partial,
                unavailable=tuple(without or ()),
                seed=seed,
            )
    except (ProfileError, CoefficientsError, PlacementError) as error:
        raise fail(str(error)) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(130) from error
    _hand_over(made, out, svg, as_json=as_json)


def seconds(text: str) -> float:
    """`10s`, `500ms`, `2m`, `10`. Exits with 2 where it is none."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|min|m|)\s*", text)
    value = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if value <= 0.0:
        raise fail(f"a time is wanted like 10s, 500ms or 2m, not {text!r}")
    return value


def _asks(models: Sequence[str], demand: Sequence[str], input_tokens: int, output_tokens: int) -> list[Ask]:
    from hw_profiles import load_model  # noqa: PLC0415
    from physical.placement.rates import Traffic  # noqa: PLC0415
    from physical.placement.units import Ask  # noqa: PLC0415

    specs = [load_model(name) for name in dict.fromkeys(models)]
    given: dict[str, float] = {}
    for entry in demand:
        name, _, rate = entry.rpartition("=")
        spec = next(
            (s for asked, s in zip(dict.fromkeys(models), specs, strict=True) if name in {asked, s.name}),
            None,
        )
        try:
            value = float(rate)
        except ValueError:
            value = 0.0
        if spec is None or not (value > 0.0 and math.isfinite(value)):
            known = ", ".join(s.name for s in specs)
            raise fail(f"--demand {entry}: wanted MODEL=REQ_PER_S with one of the models {known}")
        given[spec.name] = value
    return [Ask(spec, Traffic(input_tokens, output_tokens, given.get(spec.name))) for spec in specs]


def _working(budget_s: float, *, quiet: bool) -> AbstractContextManager[object]:
    """A spinner while the search runs, on stderr."""
    from rich.console import Console  # noqa: PLC0415

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        return nullcontext()
    return console.status(f"planning, {budget_s:g} s at most")


def _hand_over(made: ClusterPlan, out: Path | None, svg: Path | None, *, as_json: bool) -> None:
    """Into files and onto the terminal."""
    from physical.placement.plan_file import as_dict, as_yaml  # noqa: PLC0415

    if out is not None:
        _write(out, as_yaml(made))
    if svg is not None:
        from physical.placement.picture import svg as drawn  # noqa: PLC0415

        _write(svg, drawn(made))
    if as_json:
        typer.echo(json.dumps(as_dict(made), indent=2))
        return
    _show(made, out, svg)


def _write(path: Path, text: str) -> None:
    """All of it or nothing."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise fail(f"cannot write {path}: {error.strerror}") from error


def _show(made: ClusterPlan, out: Path | None, svg: Path | None) -> None:
    from rich.console import Console  # noqa: PLC0415

    console = Console(highlight=False)
    for model in made.models:
        _show_model(console, model)
    if made.idle:
        console.print(f"Idle: {_some(made.idle)}.")
    moved = {kind: n for kind, n in made.atoms.items() if n > 1}
    if moved:
        told = ", ".join(f"{n} {kind}" for kind, n in moved.items())
        console.print(f"To stay within the time, devices were dealt out together: {told}.", style="dim")
    if made.gains_cut_short:
        console.print(
            "The time was over before every kind's gain was known; a larger --budget helps.", style="dim"
        )
    console.print(f"Planned in {made.took_s:.1f} s.", style="dim")
    for path in (out, svg):
        if path is not None:
            console.print(f"Written: {path}", style="dim")


def _show_model(console: Console, model: ModelPlan) -> None:
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    from physical.placement.planner import group_name  # noqa: PLC0415

    wanted = model.wanted_requests_per_s
    against = f" ({model.requests_per_s / wanted:.0%} of the {wanted:g} asked for)" if wanted else ""
    console.print(
        f"[bold]{model.model}[/]: {model.tokens_per_s:,.0f} tokens/s, {model.requests_per_s:,.2f} requests/s{against}, "
        f"{len(model.replicas)} replica{'s' * (len(model.replicas) != 1)}"
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("replica", no_wrap=True)
    table.add_column("devices", no_wrap=True, style="bold")
    for heading in ("layers", "tokens/s", "used", "sends to"):
        table.add_column(heading, justify="left" if heading == "sends to" else "right")
    for number, replica in enumerate(model.replicas):
        for place, stage in enumerate(replica.stages):
            first = (
                f"{number}: {replica.weight:.0%}, {1e3 * replica.token_s:.1f} ms/token" if place == 0 else ""
            )
            onward = [
                f"{group_name(replica.stages[hop.target].devices)} {hop.share:.0%}"
                for hop in replica.hops
                if hop.source == place and hop.target is not None
            ]
            table.add_row(
                first,
                f"{group_name(stage.devices)} ({stage.kind})",
                f"{stage.first_layer}-{stage.last_layer}",
                f"{stage.tokens_per_s:,.0f}",
                f"{stage.tokens_per_s / stage.rate_tokens_per_s:.0%}",
                ", ".join(onward) or "the answer",
            )
    console.print(table)
    for sentence in model.explanation:
        console.print(f"  {sentence}")
    if model.gains:
        gains = ", ".join(f"{name} {gain:+,.0f}" for name, gain in model.gains.items())
        console.print(f"  More devices would bring, in tokens/s: {gains}.")
    console.print()


def _some(names: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


app.command()(apply)


if __name__ == "__main__":
    app()
