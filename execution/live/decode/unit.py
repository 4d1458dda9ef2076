"""How the engine's decode step is evolved: what was found before is reused, the rest compiled, tried and raced.

    unit = DecodeUnit(engine, sampler, guard, cache, journal, settings)
    unit.evolve()          in the evolution thread; returns when there is nothing more to try
    unit.watch()           now and then: slow-downs

For each batch size the best kernel that is right is chosen; sizes between those measured take their neighbour's.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from execution.compiler.cache import ArtifactCache, CacheError, Entry
from execution.compiler.port import Bucket, CompileError, Recipe, Subject
from execution.compiler.verdict import Verdict, verdict_from_json, verdict_to_json
from execution.engines.torch.core import EngineCore
from execution.live.decode.backend import SOURCE, decode_subject
from execution.live.decode.cases import Case, save_cases
from execution.live.decode.kernel import DecodeKernel, DecodeLibrary, PreparedWeights
from execution.live.decode.shape import DecodeShape, read_model
from execution.live.decode.trial import TrialJob
from execution.live.decode.workshop import Workshop
from execution.live.journal import ExecutionJournal
from execution.live.variants import Table, Variant

SIZES = (1, 2, 4, 8, 16, 32)
MOST_ROWS = 64
PROVEN = "proven.json"
_PASSING = ("SIGKILL", "hung", "timed out")
"""Reasons that may be the day's: memory was short, the processor busy. They are not kept for another start."""
_BETTER = 1.05
"""Times as fast as another, to take its place."""


@dataclass(slots=True)
class Proven:
    """A kernel that is right, with what is known of its speed."""

    number: int
    recipe: Recipe
    library: DecodeLibrary
    verdicts: dict[int, Verdict]
    """By batch size: how many times as fast as the original, measured side by side."""
    quality: dict[str, Any] | None = None
    entry: Entry | None = None
    banned: set[int] = field(default_factory=set)
    """Batch sizes at which it disappointed in place."""

    def gain(self, rows: int) -> float:
        """Times as fast as the original."""
        speed = self.verdicts[rows].speed
        return 0.0 if speed is None else speed.ratio

    def open_at(self, rows: int) -> bool:
        """Right, and neither shown to be faster nor shown to be slower."""
        speed = self.verdicts[rows].speed
        return speed is not None and speed.high >= 1.0


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """What is tried, and how hard."""

    model: str
    seed: int
    threads: int
    int8: bool = False
    recipes: int = 3
    """How many tiles are compiled."""
    min_gain: float = 1.03
    backend: str = "execution.live.decode.backend:NativeBackend"
    step_limit_s: float = 600.0
    niceness: int = 10
    """Of the trial process; 19: only what nobody else wants."""


class DecodeUnit:
    """Belongs to the evolution thread."""

    def __init__(
        self, core: EngineCore, cache: ArtifactCache, journal: ExecutionJournal, settings: DecodeSettings
    ) -> None:
        """Raises NotDecodableError, CompileError."""
        config = core.config
        shape, self.weights = read_model(
            core.model,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.rms_norm_eps,
        )
        self.shape: DecodeShape = replace(shape, int8=settings.int8)
        self._cache, self._journal, self._settings = cache, journal, settings
        self._rotations, self._kv = core.rotations, core.kv_layers
        self.most_rows = min(MOST_ROWS, self._kv[0].shape[0])
        self.subject: Subject = decode_subject(self.shape, self.most_rows, settings.threads)
        self.backend = _backend(settings.backend)
        why = self.backend.unavailable()
        if why is not None:
            raise CompileError(why)
        self.recipes: Sequence[Recipe] = self.backend.recipes(self.subject)[: settings.recipes]
        self.proven: list[Proven] = []
        self._prepared: dict[int, PreparedWeights] = {}
        self._kernels: dict[int, DecodeKernel] = {}
        self._variants: dict[int, Variant] = {}
        self._home = tempfile.TemporaryDirectory(prefix="decode-")
        self.workshop = Workshop(Path(self._home.name), step_limit_s=settings.step_limit_s)
        self.quality: dict[str, Any] | None = None

    def close(self) -> None:
        """End helpers, let go of the cache's entries."""
        self.workshop.close()
        for proven in self.proven:
            if proven.entry is not None:
                proven.entry.close()
        self._home.cleanup()

    # ---- Found before ----

    def recall(self) -> int:
        """Take what the cache holds, proven on this machine; how many kernels."""
        for number, recipe in enumerate(self.recipes):
            began_s = time.perf_counter()
            entry = self._cache.get(self._key(recipe))
            if entry is None:
                continue
            verdict = self._cache.verdict(entry.key)
            if verdict is None or not verdict.ok or not (entry.folder / PROVEN).is_file():
                entry.close()
                continue
            try:
                told = json.loads((entry.folder / PROVEN).read_text(encoding="utf-8"))
                library = self.backend.load(self.subject, recipe, entry.folder)
                proven = Proven(
                    number, recipe, library, {int(r): verdict_from_json(v) for r, v in told["verdicts"].items()},
                    told["quality"], entry,
                )  # fmt: skip
            except (CompileError, OSError, ValueError, KeyError) as error:
                entry.close()
                self._journal.note(
                    "cache-unusable", unit="decode", variant=str(recipe.name), reason=str(error)
                )
                continue
            self.proven.append(proven)
            self.quality = proven.quality or self.quality
            self._journal.note(
                "cache-hit", unit="decode", variant=_name(recipe), ms=1e3 * (time.perf_counter() - began_s)
            )
        return len(self.proven)

    def refused_before(self, recipe: Recipe) -> Verdict | None:
        """Why the cache says that it is of no use here."""
        verdict = self._cache.verdict(self._key(recipe))
        return verdict if verdict is not None and not verdict.ok else None

    # ---- New ----

    def missing(self) -> list[Recipe]:
        """Recipes that were neither proven nor refused on this machine."""
        known = {p.number for p in self.proven}
        return [r for i, r in enumerate(self.recipes) if i not in known and self.refused_before(r) is None]

    def work(
        self,
        sizes: Sequence[int],
        cases: Sequence[Case],
        texts: Sequence[Sequence[int]],
        better: Callable[[], None],
        meanwhile: Callable[[], None],
    ) -> None:
        """Compile, try and race what is missing; `better` is called whenever one more is proven, `meanwhile` some times a
        second."""
        missing = self.missing()
        if not missing:
            return
        folder = Path(self._home.name)
        recorded = ""
        if cases:
            save_cases(cases, folder / "cases.pt")
            recorded = str(folder / "cases.pt")
        wanted = sorted({min(s, self.most_rows) for s in (*SIZES, *sizes) if s > 0})
        hot = [s for s in sizes if s in wanted][:3]
        job = TrialJob(
            model=self._settings.model, seed=self._settings.seed, threads=self._settings.threads,
            most_rows=self.most_rows, int8=self._settings.int8,
            rows=tuple(dict.fromkeys([*hot, *wanted])), recipes=tuple(missing), folder=str(folder),
            have=tuple("" for _ in missing), cases=recorded, prompts=tuple(tuple(t) for t in texts),
            min_gain=self._settings.min_gain, backend=self._settings.backend, niceness=self._settings.niceness,
        )  # fmt: skip
        _Listener(self, missing, better).hear(self.workshop.run(job, meanwhile))

    # ---- Choosing ----

    def table(self) -> Table:
        """The best kernel for each batch size; None where the original is best."""
        if not self.proven:
            return Table()
        sizes = sorted({rows for p in self.proven for rows in p.verdicts})
        best: dict[int, Variant | None] = {}
        for rows in sizes:
            tried = [p for p in self.proven if rows in p.verdicts and rows not in p.banned]
            # where no race could tell, since the processor was busy, the trial in place will
            usable = [p for p in tried if p.verdicts[rows].ok] or [p for p in tried if p.open_at(rows)]
            ranked = sorted(usable, key=lambda p: -p.gain(rows))
            first = min(
                usable, key=lambda p: p.number, default=None
            )  # the promising one, unless clearly beaten
            if first is not None and ranked[0].gain(rows) >= _BETTER * first.gain(rows):
                first = ranked[0]
            best[rows] = None if first is None else self.variant(first)
        return Table.of({n: best[_nearest(n, sizes)] for n in range(1, self.most_rows + 1)})

    def variant(self, proven: Proven) -> Variant:
        """The kernel over this engine's memory, made when first asked for."""
        if proven.number not in self._variants:
            library = proven.library
            if library.panel not in self._prepared:
                began_s = time.perf_counter()
                self._prepared[library.panel] = library.prepare(self.weights)
                self._journal.note(
                    "weights-packed", unit="decode", bytes=self._prepared[library.panel].bytes,
                    ms=1e3 * (time.perf_counter() - began_s),
                )  # fmt: skip
            kernel = DecodeKernel(
                library, self._prepared[library.panel], self._rotations, self._kv,
                most_rows=self.most_rows, threads=self._settings.threads,
            )  # fmt: skip
            quality = (proven.quality or {}).get("figures", {})
            allowance = 3.0 * float(quality.get("logit_error_max", 0.0)) if self._settings.int8 else 0.0
            self._kernels[proven.number] = kernel
            self._variants[proven.number] = Variant(
                _name(proven.recipe, int8=self._settings.int8),
                Bucket(1, self.most_rows),
                kernel,
                allowance=allowance,
            )
        return self._variants[proven.number]

    def proven_of(self, variant: Variant) -> Proven | None:
        """What a variant was made of."""
        return next((p for p in self.proven if self._variants.get(p.number) is variant), None)

    def ban(self, variant: Variant, reason: str, rows: int | None = None) -> None:
        """Not again in this process, at this batch size; at none, and on this machine, where it was wrong."""
        proven = self.proven_of(variant)
        if proven is None:
            return
        if rows is not None:
            proven.banned.update(r for r in proven.verdicts if _nearest(rows, sorted(proven.verdicts)) == r)
            return
        self.proven.remove(proven)
        self._store_refusal(proven.recipe, Verdict(False, "in place", reason))

    # ---- Details ----

    def _key(self, recipe: Recipe) -> str:
        return self._cache.key(self.subject, recipe, self.backend.versions())

    def _store_refusal(self, recipe: Recipe, verdict: Verdict) -> None:
        try:
            self._cache.store_verdict(self._key(recipe), verdict, self._meta(recipe))
        except CacheError as error:
            self._journal.note("cache-failed", unit="decode", reason=str(error))

    def _meta(self, recipe: Recipe) -> dict[str, Any]:
        return {
            "op": self.subject.op,
            "backend": recipe.backend,
            "recipe": recipe.name,
            "bucket": str(self.subject.bucket),
            "threads": self.subject.threads,
            "model": self._settings.model,
            "int8": self._settings.int8,
            "versions": dict(self.backend.versions()),
        }

    def keep(self, proven: Proven, folder: Path, verdict: Verdict) -> None:
        """Into the cache, for the next start and for other replicas; without room it serves all the same."""
        told = {
            "verdicts": {str(r): verdict_to_json(v) for r, v in proven.verdicts.items()},
            "quality": proven.quality,
        }
        try:
            (folder / PROVEN).write_text(json.dumps(told), encoding="utf-8")
            proven.entry = self._cache.publish(self._key(proven.recipe), folder, self._meta(proven.recipe))
            self._cache.store_verdict(proven.entry.key, verdict)
            proven.library = self.backend.load(self.subject, proven.recipe, proven.entry.folder)
        except (OSError, CacheError, CompileError) as error:
            self._journal.note("cache-failed", unit="decode", variant=_name(proven.recipe), reason=str(error))

    def source(self, proven: Proven) -> str:
        """The C++ that it was compiled from."""
        folder = proven.entry.folder if proven.entry is not None else Path(self._home.name)
        path = folder / SOURCE
        return path.read_text(encoding="utf-8") if path.is_file() else ""


class _Listener:
    """Hears a trial child, and keeps what it proves."""

    def __init__(self, unit: DecodeUnit, recipes: Sequence[Recipe], better: Callable[[], None]) -> None:
        self._unit, self._recipes, self._better = unit, recipes, better
        self._folders: dict[int, Path] = {}
        self._right: dict[int, Verdict] = {}
        self._speeds: dict[int, dict[int, Verdict]] = defaultdict(dict)

    def hear(self, lines: Any) -> None:
        journal = self._unit._journal
        current = -1
        for line in lines:
            what = line["what"]
            if (
                what in {"compiling", "trying", "done", "failed"}
                and current >= 0
                and line.get("recipe") != current
            ):
                self._finish(current)
                current = -1
            if what == "quality":
                self._unit.quality = {
                    "told": line["told"],
                    "figures": line["figures"],
                    "recorded": line["recorded"],
                }
                journal.note("quality", unit="decode", told=line["told"], **line["figures"])
            elif what == "compiling":
                journal.note("compiling", unit="decode", variant=self._name(line))
            elif what == "compiled":
                self._folders[line["recipe"]] = Path(line["folder"])
                journal.note("compiled", unit="decode", variant=self._name(line), seconds=line["seconds"],
                             cpu_s=line["cpu_s"])  # fmt: skip
            elif what == "right":
                current = line["recipe"]
                self._right[current] = verdict_from_json(line["verdict"])
                numerics = line["verdict"]["numerics"]
                journal.note("right", unit="decode", variant=self._name(line), cases=numerics["cases"],
                             error_rms=numerics["error_rms"], eager_error_rms=numerics["eager_error_rms"])  # fmt: skip
            elif what == "verdict":
                self._verdict(line)
            elif what == "failed":
                journal.note("trial-failed", unit="decode", reason=line["reason"])
        if current >= 0:
            self._finish(current)

    def _verdict(self, line: dict[str, Any]) -> None:
        verdict = verdict_from_json(line["verdict"])
        journal, number, rows = self._unit._journal, line["recipe"], line["rows"]
        if not rows:
            journal.note(
                "refused", unit="decode", variant=self._name(line), stage=verdict.stage, reason=verdict.reason
            )
            if not any(word in verdict.reason for word in _PASSING):
                self._unit._store_refusal(self._recipes[number], verdict)
            return
        self._speeds[number][rows] = verdict
        speed = verdict.speed
        if speed is not None:
            journal.note("raced", unit="decode", variant=self._name(line), rows=rows, ok=verdict.ok, ratio=speed.ratio,
                         low=speed.low, high=speed.high, p=speed.p_value, before_ms=1e3 * speed.before_s,
                         after_ms=1e3 * speed.after_s)  # fmt: skip

    def _finish(self, number: int) -> None:
        """All of a recipe's races are run."""
        unit, recipe = self._unit, self._recipes[number]
        speeds, right = self._speeds[number], self._right.get(number)
        if not speeds or right is None:
            return
        best = max(speeds.values(), key=lambda v: v.speed.ratio if v.speed is not None else 0.0)
        verdict = replace(best, trial=right.trial, numerics=right.numerics)
        folder = self._folders[number]
        try:
            library = unit.backend.load(unit.subject, recipe, folder)
        except CompileError as error:
            unit._journal.note(
                "refused", unit="decode", variant=_name(recipe), stage="load", reason=str(error)
            )
            return
        place = list(unit.recipes).index(recipe)
        proven = Proven(place, recipe, library, dict(speeds), unit.quality)
        unit.keep(proven, folder, verdict)
        unit.proven.append(proven)
        self._better()

    def _name(self, line: dict[str, Any]) -> str:
        return _name(self._recipes[line["recipe"]])


def record_case(
    core: EngineCore, rows: Sequence[Any], number: int, limit_bytes: int = 32 << 20
) -> Case | None:
    """A step as it is in the engine's memory; None where it is too large to copy. Between two steps."""
    kv = core.kv_layers
    most = max(r.position for r in rows)
    if not most or len(rows) * most * kv[0][0, :, 0].nbytes * len(kv) > limit_bytes:
        return None
    lanes = torch.tensor([r.lane for r in rows])
    past = tuple(layer[lanes, :, :most].clone() for layer in kv)
    return Case(
        f"recorded {number}", tuple(r.token for r in rows), tuple(r.position for r in rows),
        tuple(range(len(rows))), past,
    )  # fmt: skip


def _nearest(rows: int, sizes: Sequence[int]) -> int:
    return min(sizes, key=lambda size: abs(math.log(size / rows)))


def _name(recipe: Recipe, *, int8: bool = False) -> str:
    return f"{recipe.backend} {'int8 ' if int8 else ''}{recipe.name}"


def _backend(name: str) -> Any:
    from execution.live.decode.bench import backend_of  # noqa: PLC0415 a cycle otherwise

    return backend_of(name)
