"""`autopoiesis loop replay`: every baseline and the evolving system on one volatile workload."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter
from rich.console import Console
from rich.live import Live
from rich.syntax import Syntax

from execution.workload import SCENARIOS, windows
from loop.commands.failing import one_line_errors
from loop.commands.inputs import (
    DATA_VARIABLE,
    cannot_write,
    choose_baselines,
    choose_models,
    find_data,
    known_baseline,
    named_models,
    open_trace,
    prepare,
    read_policies,
)
from loop.compose.evolving import DEFAULT_EVALUATIONS, EvolutionConfig
from loop.compose.experiment import (
    MAIN_CLUSTER,
    MAIN_MODELS,
    MAIN_WINDOW_S,
    Experiment,
    ExperimentConfig,
)
from loop.compose.objective import Objective
from loop.contracts import ReplayMode, Slo
from loop.runner.report import policy_diff, write_report
from loop.runner.results import ExperimentResult
from loop.runner.table import final_table, headline, live_table
from strategy.baselines import list_baselines

DEFAULT_SCENARIO = "azure-volatile"
_RESULT = TypeAdapter(ExperimentResult)


def replay(
    trace: Annotated[
        str,
        typer.Option(
            help="A trace file or folder (Azure, Mooncake, ServeGen, vLLM log, ...), a generator "
            f"(`execution workload list`), or a scenario: {', '.join(sorted(SCENARIOS))}."
        ),
    ] = DEFAULT_SCENARIO,
    cluster: Annotated[str, typer.Option(help="Packaged cluster or a YAML file.")] = MAIN_CLUSTER,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Model to serve, by name, alias or YAML file; may be given several times. Default: those that "
            f"the trace names, else {', '.join(MAIN_MODELS)}."
        ),
    ] = None,
    policy: Annotated[
        list[Path] | None,
        typer.Option(help="A policy file of your own, run in a sandbox beside the baselines."),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Baseline to run, may be given several times: all (default), none, or of {', '.join(list_baselines())}."
        ),
    ] = None,
    first: Annotated[
        str, typer.Option(help="Baseline that the evolving system begins with.")
    ] = "least_loaded",
    mode: Annotated[
        ReplayMode, typer.Option(help="batch: windows back to back; online: real arrival times.")
    ] = ReplayMode.BATCH,
    objective: Annotated[
        Objective | None,
        typer.Option(help="What evolution lowers. Default: time in batch replay, goodput online."),
    ] = None,
    window_s: Annotated[
        float, typer.Option(min=1.0, help="Seconds between two monitoring points.")
    ] = MAIN_WINDOW_S,
    rate_scale: Annotated[float, typer.Option(min=0.001, help="Multiply the request rate.")] = 1.0,
    max_windows: Annotated[int, typer.Option(min=1, help="Use at most so many windows.")] = 1000,
    slo_ttft_s: Annotated[float, typer.Option(min=0.001, help="SLO: time to first token.")] = 10.0,
    slo_tpot_s: Annotated[float, typer.Option(min=0.001, help="SLO: time per output token.")] = 0.2,
    evaluations: Annotated[
        int, typer.Option(min=0, help="Evaluations in the twin that each step of evolution may spend.")
    ] = DEFAULT_EVALUATIONS,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = max(1, min(8, os.cpu_count() or 2)),
    seed: Annotated[int, typer.Option(help="Of the workload, the hidden world and evolution.")] = 0,
    oracle: Annotated[bool, typer.Option(help="Also show the limit: the best policy of each window.")] = True,
    searched: Annotated[bool, typer.Option(help="Also run tuned static and best of N random.")] = True,
    data_dir: Annotated[
        Path | None, typer.Option(help=f"Where trace data lie. Default: ${DATA_VARIABLE}, ../shared/data.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for report.html, result.json, journal and policies.")
    ] = Path("out"),
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")] = False,
) -> None:
    """Replay a workload over a cluster with every baseline and with the system that rewrites its policy.

    Without options: an hour of Azure conversations, a mix shift, a burst, a lost node, 64 mixed GPUs.
    """
    with one_line_errors():
        # What is cheap to check comes first, so that a slip of the pen does not wait for the trace.
        baselines, begin = choose_baselines(baseline), known_baseline(first)
        users = read_policies(policy or ())
        models = choose_models(model or named_models(trace) or MAIN_MODELS)
        data = find_data(data_dir)
        workload, events = open_trace(trace, tuple(models.values()), cluster, data, seed, rate_scale)
        cut = tuple(windows(workload, window_s, events))[:max_windows]
        config = ExperimentConfig(
            title=f"{workload.name} on {Path(cluster).stem}",
            cluster=cluster,
            models=tuple(models),
            window_s=window_s,
            mode=mode,
            seed=seed,
            slo=Slo(slo_ttft_s, slo_tpot_s),
            objective=objective or (Objective.TIME if mode is ReplayMode.BATCH else Objective.GOODPUT),
            baselines=baselines,
            users=users,
            first=begin,
            evolution=EvolutionConfig(evaluations=evaluations),
            workers=workers,
            searched=searched and evaluations > 0,
            oracle=oracle,
        )
        out = prepare(out)
        errors = Console(stderr=True)
        experiment = Experiment(config, workload, cut, out)
        with showing(experiment, errors):
            result = experiment.run()
        try:
            paths = save(result, out)
        except OSError as error:
            raise cannot_write(out, error) from error
    if json:
        sys.stdout.write(_RESULT.dump_json(result).decode() + "\n")
        return
    wide = sys.stdout.isatty() or "COLUMNS" in os.environ
    show(result, paths["report"], Console(width=None if wide else 140), evolved=evaluations > 0)


def save(result: ExperimentResult, out: Path) -> dict[str, Path]:
    """Report, JSON, and the first and last policy as files that `--policy` takes."""
    paths = {"report": write_report(result, out / "report.html")}
    texts = {
        "result.json": _RESULT.dump_json(result).decode(),
        "first_policy.py": result.first.source,
        "last_policy.py": result.last.source,
    }
    for name, text in texts.items():
        part = out / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(out / name)
        paths[name] = out / name
    return paths


def show(result: ExperimentResult, report: Path, console: Console, *, evolved: bool = True) -> None:
    """Table, diff, and where the report is."""
    console.print(final_table(result, console.width))
    diff = policy_diff(result.first, result.last)
    if diff:
        console.print("\n[bold]How the policy was rewritten, first to last[/bold]")
        console.print(Syntax("\n".join(diff), "diff", background_color="default", word_wrap=False))
    elif evolved:
        console.print("\nThe first policy still serves: nothing that evolution tried was proven better.")
    else:
        console.print("\nThe first policy still serves: evolution was off (--evaluations 0).")
    console.print(f"\n{headline(result)}")
    console.print(f"report: {report.resolve()}", soft_wrap=True, highlight=False)


@contextmanager
def showing(experiment: Experiment, console: Console) -> Iterator[None]:
    """A live table on a terminal; a line for each change of status elsewhere."""
    title = experiment.config.title

    def table() -> object:
        return live_table(title, experiment.progress, experiment.status)

    if console.is_terminal:
        with Live(get_renderable=table, console=console, refresh_per_second=4, transient=True):  # type: ignore[arg-type]
            yield
        return
    said = ""

    def say() -> None:
        nonlocal said
        if experiment.status != said:
            said = experiment.status
            console.print(said, highlight=False)

    experiment.on_progress = say
    yield
