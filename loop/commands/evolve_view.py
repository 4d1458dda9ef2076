"""What `strategy evolve` shows: how it goes while it runs, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from loop.commands.archive_words import counted
from loop.commands.evolve_result import Comparison, EvolveResult
from loop.compose.offline_evolution import OfflineBudget
from loop.compose.offline_watch import Watch
from loop.contracts import Death, SynthesisCost, Synthesiser
from strategy.evolve.evolver import StepOutcome


class View:
    """Shows a run of evolution on stderr: live on a terminal, a line a step elsewhere."""

    def __init__(
        self, console: Console, title: str, watch: Watch, budget: OfflineBudget, synthesiser: Synthesiser
    ) -> None:
        self._console = console
        self._title = title
        self._watch = watch
        self._budget = budget
        self._synthesiser = synthesiser
        self._began_s = time.monotonic()

    @contextmanager
    def showing(self) -> Iterator[None]:
        """While evolution runs."""
        self._began_s = time.monotonic()
        if not self._console.is_terminal:
            yield
            return
        with Live(get_renderable=self.render, console=self._console, refresh_per_second=4, transient=True):
            yield

    def step_ended(self, outcome: StepOutcome) -> None:
        """One line a step where there is no terminal."""
        if not self._console.is_terminal:
            text = f"step {self._watch.steps}: {self._line()}; {outcome.reason}"
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def render(self) -> RenderableType:
        """The live view."""
        watch, budget = self._watch, self._budget
        took_s = time.monotonic() - self._began_s
        total, done = float(budget.evaluations), float(watch.evaluations)
        if budget.seconds is not None and took_s / budget.seconds > done / total:
            total, done = budget.seconds, took_s
        head = Table.grid(padding=(0, 1))
        head.add_row(
            Text(self._title, style="bold"),
            ProgressBar(total=total, completed=min(done, total), width=30),
            Text(f"{watch.evaluations}/{budget.evaluations} evaluations, {_clock(took_s)}"),
        )
        lines: list[RenderableType] = [head, Text(self._line())]
        if watch.deaths:
            lines.append(Text("deaths: " + deaths_text(watch.deaths), style="dim"))
        if cost := cost_text(self._synthesiser.cost):
            lines.append(Text(f"language models: {cost}, {watch.pending} under way", style="dim"))
        trouble = getattr(self._synthesiser, "trouble", "")
        lines.append(Text(trouble, style="yellow") if trouble else Text(watch.status, style="dim"))
        return Group(*lines)

    def _line(self) -> str:
        watch = self._watch
        rate = watch.evaluations / max(1e-9, time.monotonic() - self._began_s)
        proven = f"proven: {watch.champion.name}" if watch.champion else "none proven yet"
        return (
            f"best so far {watch.best_ratio:.3f} of the first policy on the train windows ({proven}); "
            f"{watch.candidates} candidates, {sum(watch.deaths.values())} dead, {rate:.1f} evaluations/s"
        )


def deaths_text(deaths: Mapping[Death, int] | Mapping[str, int]) -> str:
    """How many died of what, the most frequent first."""
    ordered = sorted(((str(d), n) for d, n in deaths.items()), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{n} {death}" for death, n in ordered) or "none"


def cost_text(cost: SynthesisCost) -> str:
    """What language models have cost; empty: none was asked."""
    if not cost.requests:
        return ""
    tokens = cost.prompt_tokens + cost.completion_tokens
    usd = f", {cost.usd:,.4f} USD" if cost.usd else ""
    return f"{cost.requests} questions ({cost.failures} without use), {tokens:,} tokens{usd}"


def show(result: EvolveResult, diff: Sequence[str], paths: dict[str, str], console: Console) -> None:
    """The table, the diff, what it took, and where things are."""
    if result.comparisons:
        console.print(_table(result))
    if diff:
        console.print(f"\n[bold]What changed, from {escape(result.first)} to {escape(result.best)}[/bold]")
        console.print(Syntax("\n".join(diff), "diff", background_color="default"))
    for line in words(result):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    for name, path in paths.items():
        console.print(f"{name}: {path}", highlight=False, soft_wrap=True, markup=False)


def words(result: EvolveResult) -> list[str]:
    """What came of it in plain words, without claiming more than was measured."""
    spent = (
        f"{counted(result.candidates, 'candidate')}, {counted(result.evaluations, 'evaluation')} in "
        f"{counted(result.steps, 'step')}, "
        f"{_clock(result.wall_s)} ({result.cpu_s:,.0f} CPU-seconds); deaths: {deaths_text(result.deaths)}"
    )
    lines = [""]
    if result.best_digest == result.first_digest:
        lines.append(f"{result.first} stands: nothing that was tried was proven better.")
    else:
        lines.append(verdict(result.comparisons, result.best, result.first))
    lines.append(f"ended: {result.reason}. {spent}")
    if result.tokens:
        lines.append(
            f"language models: {result.requests} questions ({result.failures} without use), {result.tokens:,} "
            f"tokens, {result.usd:,.4f} USD"
        )
    return lines


def verdict(comparisons: Sequence[Comparison], best: str, first: str) -> str:
    """Whether the gain held where nobody looked while searching."""
    if not comparisons:
        return f"{best} is the best so far: it won its proof against what served before, and was not compared further."
    ratios = {c.part: c.ratio for c in comparisons}
    told = ", ".join(f"{ratio:.3f} on {part}" for part, ratio in ratios.items())
    unseen = [ratio for part, ratio in ratios.items() if part.startswith(("held-out", "hidden"))]
    if not unseen:
        return f"{best} against {first}: {told}. Nothing was held out: how it does elsewhere is not known."
    if all(ratio < 1.0 for ratio in unseen):
        return f"{best} against {first}: {told}. The gain holds on everything that the search did not see."
    if any(ratio < 1.0 for ratio in unseen):
        return f"{best} against {first}: {told}. The gain holds on some of what the search did not see, not on all."
    return f"{best} against {first}: {told}. The gain does NOT hold on what the search did not see: keep {first}."


def _table(result: EvolveResult) -> Table:
    table = Table(
        title=f"{result.title}: {result.first} against {result.best}",
        title_justify="left",
        header_style="bold",
    )
    table.add_column("windows", no_wrap=True)
    table.add_column("policy", no_wrap=True)
    for name in ("objective", "total s", "TTFT p99 s", "goodput", "device-h", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    for c in result.comparisons:
        for which, side in ((result.first, c.first), (result.best, c.best)):
            mine = side is c.best
            better = "green" if c.ratio < 1.0 else "red" if c.ratio > 1.0 else ""
            table.add_row(
                "" if mine else f"{c.part} ({c.windows})",
                escape(which),
                f"{side.objective:,.1f}",
                f"{side.total_s:,.1f}",
                f"{side.ttft_p99_s:,.1f}",
                f"{side.goodput:.1%}",
                f"{side.device_hours:,.2f}",
                Text(f"{c.ratio:.3f}", style=better) if mine else "",
                end_section=mine,
            )
    return table


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
