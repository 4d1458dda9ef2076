"""`autopoiesis physical`: what the hardware is, does, and could do."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from loop.lazy_commands import add_lazily
from physical.placement.apply_cli import apply
from physical.placement.cli import plan
from physical.telemetry.cli import probe, watch

if TYPE_CHECKING:
    from loop.contracts import DeploymentOption

app = typer.Typer(
    help="Devices: what there is, how it fares, what runs where.", no_args_is_help=True, add_completion=False
)


app.command()(probe)
app.command()(watch)
app.command()(plan)
app.command()(apply)
add_lazily(
    app,
    "schedule",
    "physical.scheduling.cli:schedule",
    about="Plan GRAPH on a machine in simulation: makespan, lower bound, and who does what when.",
)


@app.callback()
def physical() -> None:
    """Devices: what there is, how it fares, what runs where."""


def fail(message: str) -> typer.Exit:
    """Say what is wrong on stderr; the exit to raise."""
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(2)


@app.command()
def options(
    cluster: Annotated[str, typer.Argument(help="Cluster by name, or a YAML file.")],
    models: Annotated[
        list[str], typer.Argument(help="Models by name, alias or YAML file; NAME@fp8 quantised.")
    ],
    *,
    input_tokens: Annotated[int, typer.Option("--input", min=1, help="Prompt tokens of a request.")] = 1024,
    output_tokens: Annotated[int, typer.Option("--output", min=1, help="Generated tokens.")] = 256,
    tp: Annotated[list[int] | None, typer.Option(min=1, help="Tensor parallel sizes [1 2 4 8].")] = None,
    pp: Annotated[list[int] | None, typer.Option(min=1, help="Pipeline parallel sizes [1 2].")] = None,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Sequences decoding at once.")] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Every replica that fits CLUSTER, with its estimated throughput, best value for money first."""
    # Here, since numpy and scipy take longer to import than `--help` should.
    from hw_profiles import ProfileError, load_cluster, load_model  # noqa: PLC0415
    from hw_profiles.performance import PerformanceModel  # noqa: PLC0415
    from hw_profiles.performance.coefficients import CoefficientsError  # noqa: PLC0415
    from physical.placement.options import deployment_options, requests_per_s  # noqa: PLC0415

    try:
        topology = load_cluster(cluster)
        specs = [load_model(name) for name in dict.fromkeys(models)]
        performance = PerformanceModel.load()
    except (ProfileError, CoefficientsError) as error:
        raise fail(str(error)) from error
    found = deployment_options(
        topology,
        specs,
        performance,
        tps=tuple(tp or (1, 2, 4, 8)),
        pps=tuple(pp or (1, 2)),
        max_num_seqs=max_num_seqs,
    )
    for spec in specs:
        if not any(option.model == spec.name for option in found):
            need = f"its weights take {spec.weight_bytes / 1e9:.1f} GB"
            asked = f" with TP {_either(tp)} and PP {_either(pp)}" if tp or pp else ""
            raise fail(
                f"model '{spec.name}' fits no group of devices of cluster '{topology.name}'{asked}: {need}"
            )
    rated = [
        (option, requests_per_s(option, input_tokens, output_tokens, max_num_seqs=max_num_seqs))
        for option in found
    ]
    rated.sort(key=lambda pair: (pair[0].model, -_per_usd(*pair), pair[0].kind, pair[0].tp, pair[0].pp))
    if as_json:
        rows = [
            dataclasses.asdict(option) | {"requests_per_s": rate, "requests_per_usd": _per_usd(option, rate)}
            for option, rate in rated
        ]
        request = {"input_tokens": input_tokens, "output_tokens": output_tokens}
        typer.echo(json.dumps({"cluster": topology.name, "request": request, "options": rows}, indent=2))
        return
    console = Console()
    for spec in specs:
        mine = [pair for pair in rated if pair[0].model == spec.name]
        console.print(_table(spec.name, mine, input_tokens, output_tokens))


def _either(sizes: list[int] | None) -> str:
    return " or ".join(map(str, sizes)) if sizes else "as usual"


def _per_usd(option: DeploymentOption, rate: float) -> float:
    """Requests per dollar; 0 where the devices cost nothing, since the ratio says nothing then."""
    return rate * 3600.0 / option.usd_per_hour if option.usd_per_hour else 0.0


def _table(
    model: str, rated: list[tuple[DeploymentOption, float]], input_tokens: int, output_tokens: int
) -> Table:
    table = Table(
        title=f"{model}: one replica, requests of {input_tokens} + {output_tokens} tokens",
        caption="KV: tokens held; prefill: tokens/s; ms/tok: one request alone; start: s until it serves. "
        "Estimates on nominal hardware.",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    table.add_column("devices", style="bold", no_wrap=True)
    for heading in ("TPxPP", "KV", "prefill", "ms/tok", "start", "USD/h", "req/s", "req/USD"):
        table.add_column(heading, justify="right", no_wrap=True, style="bold" if "req" in heading else None)
    best = max((_per_usd(option, rate) for option, rate in rated), default=0.0)
    for option, rate in rated:
        value = _per_usd(option, rate)
        # One sequence with this prompt: the floor of the time between two tokens.
        kv_s = input_tokens * option.decode_per_kv_token_s
        step_ms = 1e3 * (option.decode_base_s + option.decode_per_seq_s + kv_s)
        table.add_row(
            f"{option.tp * option.pp} x {option.kind}",
            f"{option.tp}x{option.pp}",
            _short(option.kv_capacity_tokens),
            _short(option.prefill_tokens_per_s),
            f"{step_ms:.1f}",
            f"{option.start_s:.0f}",
            f"{option.usd_per_hour:.2f}",
            f"{rate:.2f}" if rate else "-",
            f"{value:,.0f}",
            style="green" if value == best and best else None,
        )
    return table


def _short(tokens: float) -> str:
    """Three digits: 950, 17.7k, 3.22M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if tokens >= 0.9995 * size:
            return f"{tokens / size:.3g}{unit}"
    return f"{tokens:.0f}"
