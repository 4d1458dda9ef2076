"""`autopoiesis strategy evolve`: evolve a policy off line, on a recorded or generated workload."""

from __future__ import annotations

import hashlib
import json as jsonlib
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter
from rich.console import Console

from loop.commands import setting as s
from loop.commands import synthesis as y
from loop.commands.archive_words import counted
from loop.commands.evolve_result import HIDDEN_WORLDS, EvolveResult, compare, comparison_parts
from loop.commands.evolve_view import View, show
from loop.commands.folding import folded
from loop.commands.inputs import cannot_write
from loop.commands.policies import find_policy, one_line, refuse_others, tidy
from loop.commands.score import console, run_all, write_text
from loop.compose.offline import OfflineSetup, observe_past
from loop.compose.offline_evolution import OfflineBudget, OfflineEvolution, OfflineOutcome
from loop.compose.offline_record import OfflineRecord, add_record, last_record
from loop.compose.offline_watch import WatchedArchive
from loop.contracts import PolicySource, Synthesiser
from loop.runner.evolution import PastWindow
from loop.runner.lineage import read_lineage
from loop.runner.lineage_page import lineage_page
from loop.runner.lineage_picture import draw_lineage
from loop.runner.report import policy_diff
from strategy.baselines import list_baselines

DEFAULT_EVALUATIONS = 200
PERTURBED = 2
"""Worlds beside the nominal one in which candidates are proven."""


@folded
def evolve(
    policy: Annotated[
        str,
        typer.Option(
            metavar="FILE|BASELINE", help=f"To begin with: a file, or one of {', '.join(list_baselines())}."
        ),
    ] = "least_loaded",
    *,
    where: s.SettingOptions,
    choice: y.SynthesisOptions,
    evaluations: Annotated[
        int,
        typer.Option(min=4, help="Evaluations in the twin at most: a policy on one stage of the cascade."),
    ] = DEFAULT_EVALUATIONS,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Wall minutes of the search at most. Default: no limit.")
    ] = None,
    workers: s.Workers = s.WORKERS,
    archive: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Archive of all candidates; resumed when it exists. Default: OUT/archive.sqlite.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the policy, its diff, the lineage and the result.")
    ] = Path("evolved"),
    json: s.AsJson = False,
) -> None:
    """Evolve a policy off line: on the windows of a workload, until a budget is spent.

    Safe to interrupt: Ctrl-C ends the search, the best so far is written, and the same command resumes.
    """
    with one_line():
        choice.check()
        first = find_policy(policy)
        setting = where.open()
        setup = setting.setup(PERTURBED)
        make_folder(out)
        run = _Evolve(setting, setup, first, choice, workers, archive or out / "archive.sqlite", out)
        result = run.run(OfflineBudget(evaluations, None if minutes is None else 60.0 * minutes))
        if json:
            sys.stdout.write(TypeAdapter(EvolveResult).dump_json(result).decode() + "\n")
        else:
            show(result, run.diff, result.files, console())
        if result.reason == "interrupted":
            raise typer.Exit(130)


def make_folder(out: Path) -> None:
    """Raise InputError when the folder cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error


@dataclass(slots=True)
class _Evolve:
    """One run of the command, from the checked input to the result."""

    setting: s.Setting
    setup: OfflineSetup
    first: PolicySource
    choice: y.SynthesisOptions
    workers: int
    archive: Path
    out: Path
    diff: tuple[str, ...] = ()

    def run(self, budget: OfflineBudget) -> EvolveResult:
        """Observe, search, compare, write."""
        errors = Console(stderr=True)
        record = self._resume(errors)
        past = self._observe(errors)
        make_folder(self.archive.parent)
        with WatchedArchive(self.archive) as book:
            champion = book.get(record.champion) if record and record.champion in book else None
            self._note(champion or self.first)
            # a search that goes on draws new numbers, or it would propose again what it has proposed
            seed = self.setting.seed + 1_000_003 * book.generation()
            synthesiser = y.make_synthesiser(
                self.choice, self.setting.objective, seed, book.add_exchange, budget.seconds
            )
            view = View(errors, f"evolving {self.first.name}", book.watch, budget, synthesiser)
            with (
                stopping(errors) as stop,
                OfflineEvolution(
                    self.setup,
                    past,
                    self.first,
                    synthesiser,
                    book,
                    workers=self.workers,
                    world_key=self.world_key,
                    champion=champion,
                    on_promotion=self._promoted,
                    on_step=view.step_ended,
                ) as evolution,
            ):
                with view.showing():
                    outcome = evolution.run(budget, stop.is_set)
                split = evolution.split
            result = self._result(outcome, synthesiser, resumed=record is not None)
            best = outcome.champion
            result.files.update(self._files(best, book))
        if outcome.reason != "interrupted" and best.digest != self.first.digest:
            hidden = self.setup.hidden(self.setting.seed, HIDDEN_WORLDS)
            parts = comparison_parts(self.first, best, past, split, HIDDEN_WORLDS)
            what = f"{best.name} against {self.first.name}"
            comparisons = compare(
                parts, lambda runs: run_all(hidden, runs, self.workers, what), self.setting.objective
            )
            result = replace(result, comparisons=comparisons)
        text = TypeAdapter(EvolveResult).dump_json(result, indent=1).decode()
        write_text(self.out / "result.json", text + "\n", "--out")
        return result

    @property
    def world_key(self) -> str:
        """What makes scores comparable, as 12 hex digits."""
        text = jsonlib.dumps({**self.setting.describe(), "first": self.first.digest}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _resume(self, errors: Console) -> OfflineRecord | None:
        """Where an earlier run left off, if one of the same setting did; say so."""
        if not self.archive.exists():
            return None
        refuse_others(self.archive)
        record = last_record(self.archive)
        with WatchedArchive(self.archive) as book:
            known = ", ".join(
                (
                    f"{self.archive}: {counted(book.count(), 'candidate')}",
                    counted(book.spent(), "evaluation"),
                    counted(book.generation(), "step"),
                )
            )
        same = record is not None and record.setting == self.setting.describe()
        if record is not None and same and record.first == self.first.digest:
            errors.print(
                f"resuming {known}; the best so far is {record.champion}", highlight=False, soft_wrap=True
            )
            return record
        errors.print(
            f"resuming {known}, of another workload or first policy: its policies are parents, its scores do not count",
            highlight=False,
            soft_wrap=True,
        )
        return None

    def _observe(self, errors: Console) -> tuple[PastWindow, ...]:
        """The past: what the first policy made of the workload in the nominal world."""
        text = f"serving {self.setting.title} by {self.first.name} once, to have a past"
        if errors.is_terminal:
            with errors.status(text):
                return observe_past(self.setup, self.first)
        errors.print(text, highlight=False, soft_wrap=True)
        return observe_past(self.setup, self.first)

    def _promoted(self, policy: PolicySource) -> None:
        """Each best so far is on disk before the search goes on."""
        self._note(policy)
        write_text(self.out / "policy.py", tidy(policy), "--out")

    def _note(self, champion: PolicySource) -> None:
        add_record(self.archive, self.setting.describe(), self.first.digest, champion.digest)

    def _result(self, outcome: OfflineOutcome, writer: Synthesiser, *, resumed: bool) -> EvolveResult:
        best, cost = outcome.champion, writer.cost
        return EvolveResult(
            title=self.setting.title,
            setting=self.setting.describe(),
            synthesiser=self.choice.kind.value,
            first=self.first.name,
            first_digest=self.first.digest,
            best=best.name,
            best_digest=best.digest,
            best_note=best.note,
            reason=outcome.reason,
            resumed=resumed,
            steps=outcome.steps,
            evaluations=outcome.evaluations,
            candidates=outcome.candidates,
            deaths=outcome.deaths,
            promotions=outcome.promotions,
            wall_s=outcome.wall_s,
            cpu_s=outcome.cpu_s,
            requests=cost.requests,
            failures=cost.failures,
            tokens=cost.prompt_tokens + cost.completion_tokens,
            usd=cost.usd,
            train_ratio=outcome.ratio,
        )

    def _files(self, best: PolicySource, book: WatchedArchive) -> dict[str, str]:
        """Write policy, diff and lineage; where they are."""
        self.diff = tuple(policy_diff(self.first, best))
        lineage = read_lineage(book, first=self.first.digest, champion=best.digest)
        title = f"Lineage of {best.name}"
        files = {
            "policy": ("policy.py", tidy(best)),
            "diff": ("policy.diff", "".join(f"{line}\n" for line in self.diff)),
            "lineage": ("lineage.html", lineage_page(lineage, title)),
            "picture": ("lineage.svg", draw_lineage(lineage, title)),
        }
        for name, text in files.values():
            write_text(self.out / name, text, "--out")
        found = {name: str((self.out / file).resolve()) for name, (file, _) in files.items()}
        return {**found, "archive": str(self.archive.resolve())}


@contextmanager
def stopping(errors: Console) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one interrupts."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def interrupted(number: int, frame: object) -> None:  # noqa: ARG001 - the handler's signature
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        with suppress(OSError):
            errors.print("stopping: what runs is finished first; Ctrl-C again breaks it off", highlight=False)

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
