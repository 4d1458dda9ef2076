"""From deployment options to plans: which devices are usable, how they group, what to fill them with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from statistics import median

from loop.contracts.observation import DeploymentOption, DeviceView, Observation
from loop.contracts.plan import Plan, ReplicaSpec, Role
from strategy.estimates import Load, option_for, rates, requests_per_s, shared_batch

Rate = Callable[[DeploymentOption, Load], float]
"""Worth of one replica under a load, e.g. requests per second."""


def usable_devices(obs: Observation, horizon_s: float = 0.0) -> tuple[DeviceView, ...]:
    """Devices that are up and not announced to leave within `horizon_s` (0: none announced at all); when all
    that are up are leaving, they are better than none."""
    up = tuple(d for d in obs.devices if d.available)
    staying = tuple(d for d in up if d.leaving_in_s is None or (horizon_s > 0 and d.leaving_in_s > horizon_s))
    return staying or up


def groups(
    obs: Observation, kind: str, size: int, taken: Collection[str] = (), horizon_s: float = 0.0
) -> list[tuple[str, ...]]:
    """Disjoint groups of `size` usable devices of one kind, each within a node, in the order of the
    observation; `taken` devices are left out."""
    by_node: dict[str, list[str]] = {}
    for device in usable_devices(obs, horizon_s):
        if device.kind == kind and device.id not in taken:
            by_node.setdefault(device.node, []).append(device.id)
    return [
        tuple(ids[start : start + size])
        for ids in by_node.values()
        for start in range(0, len(ids) - size + 1, size)
    ]


def keep(obs: Observation, horizon_s: float = 0.0) -> tuple[ReplicaSpec, ...]:
    """The replicas of the plan that serves whose devices are all still usable."""
    usable = {d.id for d in usable_devices(obs, horizon_s)}
    return tuple(spec for spec in obs.plan.replicas if usable.issuperset(spec.devices))


def differs(old: Plan, new: Plan) -> bool:
    """Whether a change of plan would start, stop or resize anything."""
    return set(old.replicas) != set(new.replicas)


def spec_of(
    option: DeploymentOption,
    devices: tuple[str, ...],
    role: Role = Role.MIXED,
    max_num_seqs: int = 256,
    max_num_batched_tokens: int = 8192,
) -> ReplicaSpec:
    """A replica of this option on these devices."""
    return ReplicaSpec(
        option.model, devices, option.tp, option.pp, role, max_num_seqs, max_num_batched_tokens
    )


def best_options(
    obs: Observation, load: Load, max_num_seqs: int = 256, rate: Rate | None = None
) -> dict[str, DeploymentOption]:
    """For each device kind, the option of the load's model with the best rate per device."""
    best: dict[str, tuple[float, DeploymentOption]] = {}
    for option in obs.options:
        if option.model != load.model:
            continue
        worth = rate(option, load) if rate else requests_per_s(option, load, max_num_seqs)
        worth /= option.tp * option.pp
        if worth > 0 and (option.kind not in best or worth > best[option.kind][0]):
            best[option.kind] = (worth, option)
    return {kind: option for kind, (_, option) in best.items()}


def fill(
    obs: Observation,
    of: Iterable[Load],
    kept: Sequence[ReplicaSpec] = (),
    max_num_seqs: int = 256,
    max_num_batched_tokens: int = 8192,
    *,
    horizon_s: float = 0.0,
    until_s: float = 0.0,
    concurrency: float = 1.0,
    rate: Rate | None = None,
    leave_out: Collection[str] = (),
) -> tuple[ReplicaSpec, ...]:
    """Replicas `kept`, and new ones on all devices that they leave free, but for those in `leave_out`.

    Greedy: the model whose replicas cover the least of its load gets the next one, on the devices where its
    rate is the best in comparison to what the other models would make of them; what is left over in a node
    is filled with smaller groups. A model whose load is served within `until_s` gets no more replicas (0:
    fill everything); each model gets at least one.

    The worth of a replica is its `requests_per_s` at the batch that its share of the load fills. That batch
    times `concurrency`: below 1 favours larger groups, which finish a few requests sooner, above 1 more and
    smaller ones. `rate` replaces all that.
    """
    loads = tuple(of)
    batches = {load.model: float(max_num_seqs) for load in loads}

    def throughput(option: DeploymentOption, load: Load) -> float:
        return requests_per_s(option, load, batches[load.model])

    specs: tuple[ReplicaSpec, ...] = ()
    for _ in range(2 if rate is None else 1):
        filler = _Filler(obs, loads, rate or throughput)
        filler.occupy(kept, horizon_s, leave_out)
        new = [
            spec_of(option, devices, Role.MIXED, max_num_seqs, max_num_batched_tokens)
            for option, devices in filler.replicas(until_s)
        ]
        specs = (*kept, *new)
        for (
            load
        ) in loads:  # how fast a replica is depends on its share of the load, which a first layout tells
            mix = [o for o in option_for(obs, [s for s in specs if s.model == load.model]) if o is not None]
            batch = concurrency * shared_batch(mix, load, max_num_seqs)
            batches[load.model] = min(float(max_num_seqs), max(1.0, batch))
    return specs


def shrink(
    obs: Observation, of: Iterable[Load], specs: Sequence[ReplicaSpec], until_s: float
) -> tuple[ReplicaSpec, ...]:
    """The replicas that suffice to serve each load within `until_s`: the least efficient (requests per second
    and device) go first, and each model keeps at least one."""
    stay = set(specs)
    for load in of:
        mine = [spec for spec in specs if spec.model == load.model]
        served = dict(zip(mine, rates(obs, mine, load), strict=True))
        total = sum(served.values())
        for spec in sorted(mine, key=lambda s: (served[s] / len(s.devices), s.devices))[: len(mine) - 1]:
            if (total - served[spec]) * until_s >= load.requests:
                total -= served[spec]
                stay.discard(spec)
    return tuple(spec for spec in specs if spec in stay)


def slow_devices(obs: Observation, below: float) -> frozenset[str]:
    """Usable devices whose observed speed is less than `below` times the median of their kind."""
    speeds: dict[str, list[float]] = {}
    for device in usable_devices(obs):
        speeds.setdefault(device.kind, []).append(device.speed)
    medians = {kind: median(values) for kind, values in speeds.items()}
    return frozenset(d.id for d in usable_devices(obs) if d.speed < below * medians[d.kind])


class _Filler:
    """The state of one `fill`: what is free, and how much of each model's load is covered."""

    def __init__(self, obs: Observation, of: tuple[Load, ...], rate: Rate) -> None:
        self.obs = obs
        self.loads = {load.model: load for load in of}
        self.need = {load.model: max(load.requests, 1e-3) for load in of}
        self.covered = dict.fromkeys(self.loads, 0.0)
        self.count = dict.fromkeys(self.loads, 0)
        self.free: dict[tuple[str, str], list[str]] = {}
        self.rates: dict[tuple[str, str, int, int], float] = {}
        self.worth: dict[str, list[tuple[float, DeploymentOption]]] = {m: [] for m in self.loads}
        self._rank(rate)

    def _rank(self, rate: Rate) -> None:
        """Options of each model, the best first; per device, and relative to the other models' best."""
        best: dict[tuple[str, str], float] = {}
        for option in self.obs.options:
            if option.model in self.loads:
                value = rate(option, self.loads[option.model])
                self.rates[option.model, option.kind, option.tp, option.pp] = value
                share = value / (option.tp * option.pp) / self.need[option.model]
                at = (option.model, option.kind)
                best[at] = max(best.get(at, 0.0), share)
        for option in self.obs.options:
            if option.model not in self.loads:
                continue
            value = self.rates[option.model, option.kind, option.tp, option.pp]
            others = max(
                (v for (m, k), v in best.items() if k == option.kind and m != option.model), default=0.0
            )
            share = value / (option.tp * option.pp) / self.need[option.model]
            if value > 0:  # what nobody else can use comes first
                worth = share / others if others > 0 else share * 1e9
                self.worth[option.model].append((worth, option))
        for ranked in self.worth.values():
            ranked.sort(key=lambda pair: (-pair[0], pair[1].tp * pair[1].pp, pair[1].pp, pair[1].kind))

    def occupy(self, kept: Sequence[ReplicaSpec], horizon_s: float, leave_out: Collection[str] = ()) -> None:
        """Take the devices of the kept replicas and those to leave out away; count what the kept cover."""
        taken = {device for spec in kept for device in spec.devices}.union(leave_out)
        kinds = {d.id: d.kind for d in self.obs.devices}
        for device in usable_devices(self.obs, horizon_s):
            if device.id not in taken:
                self.free.setdefault((device.node, device.kind), []).append(device.id)
        for spec in kept:
            if spec.model in self.covered:
                rate = self.rates.get((spec.model, kinds.get(spec.devices[0], ""), spec.tp, spec.pp), 0.0)
                self.covered[spec.model] += rate
                self.count[spec.model] += 1

    def replicas(self, until_s: float) -> Iterator[tuple[DeploymentOption, tuple[str, ...]]]:
        """New replicas until nothing fits or nothing more is wanted."""
        while found := self._next_replica(until_s):
            yield found

    def _next_replica(self, until_s: float) -> tuple[DeploymentOption, tuple[str, ...]] | None:
        """The next replica, of the model that is covered least and can still have one; pipelines over several
        nodes only when nothing fits within a node any more."""
        wanting = [m for m in self.loads if not (self.count[m] and self.covered[m] * until_s >= self.need[m])]
        wanting.sort(key=lambda m: (self.covered[m] / self.need[m], m))
        for take in (self._take, self._take_over_nodes):
            for model in wanting:
                for _, option in self.worth[model]:
                    devices = take(option)
                    if devices:
                        rate = self.rates[option.model, option.kind, option.tp, option.pp]
                        self.covered[model] += rate
                        self.count[model] += 1
                        return option, devices
        return None

    def _take(self, option: DeploymentOption) -> tuple[str, ...]:
        """A group of free devices within a node, from the node that it fills best."""
        size = option.tp * option.pp
        fitting = [at for at, ids in self.free.items() if at[1] == option.kind and len(ids) >= size]
        if not fitting:
            return ()
        at = min(fitting, key=lambda at: len(self.free[at]) % size)
        ids = self.free[at]
        self.free[at] = ids[size:]
        return tuple(ids[:size])

    def _take_over_nodes(self, option: DeploymentOption) -> tuple[str, ...]:
        """A pipeline whose stages lie in several nodes, each stage within one; the emptiest nodes first."""
        if option.pp == 1:
            return ()
        nodes = [at for at in self.free if at[1] == option.kind]
        nodes.sort(key=lambda at: -len(self.free[at]))
        stages = [
            (at, self.free[at][start : start + option.tp])
            for at in nodes
            for start in range(0, len(self.free[at]) - option.tp + 1, option.tp)
        ][: option.pp]
        if len(stages) < option.pp:
            return ()
        for at, stage in stages:
            self.free[at] = [device for device in self.free[at] if device not in stage]
        return tuple(device for _, stage in stages for device in stage)
