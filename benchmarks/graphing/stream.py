"""The multi-modal example over a stream whose mix changes: variants by regime against every static variant.

Static variants serve the whole stream by themselves. Beside the module in eager mode and its whole graph compiled,
there are the two that a careful programmer would write by hand: a forward that looks at each batch and skips the
modalities that nobody has, in eager mode and with its pieces compiled for varying sizes.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.graphing.timing import median
from execution.regimes.builder import Site, build
from execution.regimes.module import RegimeModule
from execution.regimes.multimodal import MODALITIES, SEQUENCES, MultiModalAnalysis, sample_batch
from execution.regimes.recipe import PRUNED, BuildError, Recipe, find, module_key, open_artifact
from execution.regimes.regime import MaskedBatch, Regime

Batch = tuple[Tensor, ...]
Call = Callable[..., Any]


def reader() -> MaskedBatch:
    """Of the example's inputs."""
    return MaskedBatch(present=5, tokens=2, inputs=6)


RECIPES = (
    Recipe("pruned and merged", f"{PRUNED},horizontal,memory_order(beam=4, states=100)"),
    Recipe("pruned and merged, compiled", f"{PRUNED},horizontal", "inductor"),
)
STAND_IN = "skips what is absent"
QUICK_RECIPES = RECIPES[:1]


@dataclass(frozen=True, slots=True)
class Phase:
    """A time in which the mix is the same."""

    mixes: tuple[tuple[str, float], ...]
    """Modalities of a batch, and how often."""
    rows: tuple[int, int]
    tokens: tuple[int, int]


PHASES = (
    Phase((("00100", 0.9), ("10100", 0.1)), (3, 4), (20, 32)),
    Phase((("10100", 0.8), ("00100", 0.2)), (3, 4), (20, 32)),
    Phase((("00011", 0.9), ("11111", 0.1)), (3, 4), (20, 32)),
    Phase((("01100", 0.8), ("00100", 0.2)), (3, 4), (20, 32)),
    Phase((("11111", 0.7), ("00011", 0.3)), (3, 4), (20, 32)),
    Phase((("00100", 0.5), ("00011", 0.5)), (1, 1), (20, 32)),
)


def make_stream(model: MultiModalAnalysis, calls_per_phase: int, seed: int) -> list[Batch]:
    """Batches of all phases; every batch is homogeneous, as servers group requests."""
    chance = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    stream = []
    for phase in PHASES:
        names, weights = zip(*phase.mixes, strict=True)
        for _ in range(calls_per_phase):
            mix = chance.choices(names, weights)[0]
            rows, tokens = chance.randint(*phase.rows), chance.randint(*phase.tokens)
            stream.append(sample_batch(model.config, [mix] * rows, tokens, generator))
    return stream


class Branching(nn.Module):
    """The same answers by a forward that skips what no row has."""

    def __init__(self, model: MultiModalAnalysis, compiled: Callable[[Call], Call] | None = None) -> None:
        super().__init__()
        self.model = model
        wrap = compiled or (lambda call: call)
        self.embed = {
            "vision": wrap(lambda x: model.patch(x).flatten(2).transpose(1, 2)),
            "audio": wrap(lambda x: model.frames(x.transpose(1, 2)).transpose(1, 2)),
            "text": wrap(model.words.forward),
        }
        self.encode = {name: wrap(model.encoders[name].forward) for name in SEQUENCES}
        self.cross = {name: wrap(attention.forward) for name, attention in model.cross.items()}
        self.towers = {
            "sensor": wrap(lambda x: model.channels(x.unbind(1)).mean(1)),
            "tabular": wrap(lambda x: model.columns(x.split(1, dim=1)).mean(1)),
        }
        self.conclude = wrap(model.conclude)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """As MultiModalAnalysis.forward."""
        values, present = dict(zip(MODALITIES, inputs, strict=False)), inputs[-1]
        here = dict(zip(MODALITIES, present.any(0).tolist(), strict=True))
        tokens, masks = {}, {}
        for i, name in enumerate(SEQUENCES):
            if not here[name]:
                continue
            embedded = self.embed[name](values[name])
            masks[name] = present[:, i : i + 1].expand(-1, embedded.shape[1])
            if name == "text":
                masks[name] = masks[name] & (values[name] != 0)
            tokens[name] = self.encode[name](embedded, masks[name])
        nothing = torch.zeros(present.shape[0], self.model.config.width)
        pooled = [self._pool(name, tokens, masks) if here[name] else nothing for name in SEQUENCES]
        for i, name in enumerate(("sensor", "tabular"), 3):
            pooled.append(self.towers[name](values[name]) * present[:, i : i + 1] if here[name] else nothing)
        answer: tuple[Tensor, ...] = self.conclude(torch.stack(pooled, dim=1), present)
        return answer

    def _pool(self, name: str, tokens: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        x = tokens[name]
        own = self.model.cross_norm[name](x)
        for other, seen_tokens in tokens.items():
            if other != name:
                seen = self.cross[f"{name}_{other}"](own, seen_tokens, masks[other])
                x = x + seen * masks[other].any(dim=1)[:, None, None]
        weights = masks[name].to(x.dtype)[:, :, None]
        return (x * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def compiled_pieces(model: MultiModalAnalysis) -> Branching:
    """Branching with each piece under torch.compile, for varying sizes."""
    torch._dynamo.config.recompile_limit = 64
    return Branching(model, lambda call: torch.compile(call, dynamic=True))


def compiled_whole(model: MultiModalAnalysis, example: Batch, store: Path, threads: int) -> Call:
    """The whole graph, ahead of time by inductor with frozen weights, for rows and tokens that vary.

    Kept in the store by the model's weights, torch's version and the thread count.
    """
    import hashlib  # noqa: PLC0415

    told = hashlib.sha256(f"{torch.__version__} {threads} {model.config}".encode())
    for value in model.state_dict().values():
        told.update(value.numpy().tobytes())
    path = store / f"whole-{told.hexdigest()[:32]}.pt2"
    if not path.exists():
        store.mkdir(parents=True, exist_ok=True)
        rows, tokens = torch.export.Dim("rows", min=1, max=64), torch.export.Dim("tokens", min=2, max=256)
        shapes: list[dict[int, Any]] = [{0: rows} for _ in example]
        shapes[2][1] = tokens
        with torch.no_grad():
            program = torch.export.export(model, example, dynamic_shapes=tuple(shapes))
            part = path.with_suffix(f".{time.time_ns()}.pt2")
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(part),
                inductor_configs={"freezing": True, "aot_inductor.compile_wrapper_opt_level": "O1"},
            )
            part.replace(path)
    loaded: Call = torch._inductor.aoti_load_package(str(path))
    return loaded


def regime_examples(stream: Sequence[Batch]) -> dict[Regime, list[Batch]]:
    """The first batches of each regime."""
    told = reader()
    found: dict[Regime, list[Batch]] = {}
    for batch in stream:
        regime = told.read(batch)
        if regime is not None and len(found.setdefault(regime, [])) < 2:
            found[regime].append(tuple(told.fit(batch, regime)))
    return found


def build_all(
    model: MultiModalAnalysis, stream: Sequence[Batch], site: Site, recipes: Sequence[Recipe]
) -> dict[tuple[Regime, str], Call | str]:
    """Every recipe for every regime of the stream; text where one was refused."""
    weights, key = dict(model.named_parameters()), module_key(model, site.threads)
    made: dict[tuple[Regime, str], Call | str] = {}
    for regime, examples in regime_examples(stream).items():
        for recipe in recipes:
            try:
                built = find(recipe, regime, key, site.store) or build(model, recipe, regime, examples, site)
                made[regime, recipe.name] = open_artifact(built, weights)
            except BuildError as error:
                made[regime, recipe.name] = str(error)
    return made


@dataclass(slots=True)
class Lane:
    """One contestant over the stream."""

    name: str
    call: Call
    seconds: list[float]


def race(lanes: Sequence[Lane], stream: Sequence[Batch], *, turn: int = 0) -> None:
    """Each batch to each contestant, in a turning order."""
    with torch.no_grad():
        for at, batch in enumerate(stream):
            for step in range(len(lanes)):
                lane = lanes[(at + turn + step) % len(lanes)]
                started_s = time.perf_counter()
                lane.call(*batch)
                lane.seconds.append(time.perf_counter() - started_s)


def phase_rows(lanes: Sequence[Lane], calls_per_phase: int, label: str, threads: int) -> list[dict[str, Any]]:
    """Median milliseconds of each contestant by phase of its last pass over the stream."""
    rows = []
    for lane in lanes:
        row: dict[str, Any] = {"part": label, "threads": threads, "what": lane.name}
        row["mean_ms"] = 1e3 * sum(lane.seconds) / len(lane.seconds)
        for i in range(len(PHASES)):
            part = lane.seconds[i * calls_per_phase : (i + 1) * calls_per_phase]
            row[f"phase_{i}_ms"] = 1e3 * median(part)
        rows.append(row)
    return rows


def serving(model: MultiModalAnalysis, recipes: Sequence[Recipe], site: Site) -> RegimeModule:
    """The module by regimes; where nothing is known, the forward that skips what is absent stands in."""
    return RegimeModule(model, reader(), general={STAND_IN: Branching(model)}, recipes=recipes, site=site)


@dataclass(frozen=True, slots=True)
class Settling:
    """How a new mix came to its variant; not a number: not within the limit."""

    first_better_s: float
    """Until a variant better than the stand-in was in force."""
    settled_s: float
    """Until everything was built and tried, and the best in force."""
    holder: str
    calls: int
    slowest_ms: float
    """Of the calls meanwhile."""
    median_ms: float
    unfinished: str
    """What was still to be built or tried at the limit; empty: nothing."""


Tell = Callable[[str], None]


def settle(
    model: MultiModalAnalysis,
    batch: Batch,
    site: Site,
    recipes: Sequence[Recipe],
    limit_s: float,
    *,
    tell: Tell = lambda _: None,
) -> Settling:
    """One new mix, call after call, until all variants are built and tried, or the limit; `tell` hears of events.

    A client waits a little between two of its calls (a tenth of a call), so that helpers of the same process get a turn.
    """
    with serving(model, recipes, site) as served:
        regime = served.reader.read(batch)
        assert regime is not None  # noqa: S101 the stream's batches are all known
        started_s = time.perf_counter()
        first = float("nan")
        holder, seconds, told = STAND_IN, list[float](), 0
        settled = False
        while not settled and time.perf_counter() - started_s < limit_s:
            call_s = time.perf_counter()
            served(*batch)
            now_s = time.perf_counter()
            seconds.append(now_s - call_s)
            if served.holder(regime) != holder:
                holder = served.holder(regime)
                built = holder in {recipe.name for recipe in recipes}
                first = now_s - started_s if built and math.isnan(first) else first
                tell(f"{now_s - started_s:.1f} s: {holder} is in force")
            for event in list(served.events)[told:]:
                tell(f"{now_s - started_s:.1f} s: {event.what}: {event.why}")
            told = len(served.events)
            settled = served.idle and served.states()[regime].settled
            time.sleep(0.1 * seconds[-1])
        left = "" if settled else _unfinished(served, regime, recipes)
        return Settling(
            first, time.perf_counter() - started_s if settled else float("nan"), holder, len(seconds), 1e3 * max(seconds),
            1e3 * median(seconds), left,
        )  # fmt: skip


def _unfinished(served: RegimeModule, regime: Regime, recipes: Sequence[Recipe]) -> str:
    state = served.states()[regime]
    left = [recipe.name for recipe in recipes if {recipe.name}.isdisjoint((*state.estimates, *state.dropped))]
    return f"not built: {', '.join(left)}" if left else "not tried out"
