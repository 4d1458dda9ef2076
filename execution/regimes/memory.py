"""Peak memory of a call, measured: what its operations give, and what torch's allocator hands out for it.

    measured_peak(module, inputs)                    # logical: outputs of operations, while they live
    allocator_peak_bytes(module, inputs)             # all that the CPU allocator gave, workspaces included

Both count what the call adds to what was live before it: inputs and weights are not in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Call = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class MeasuredPeak:
    """Peak of live operation outputs."""

    bytes: int
    operations: int
    """Dispatched."""
    answer: Any


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows each storage that an operation returns until it is freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.operations = 0
        self._known: set[int] = set()

    def ignore(self, tensors: Sequence[torch.Tensor]) -> None:
        """These were there before."""
        self._known.update(tensor.untyped_storage()._cdata for tensor in tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and note what is new."""
        answer = func(*args, **(kwargs or {}))
        self.operations += 1
        for leaf in tree_leaves(answer):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf.untyped_storage())
        self.peak = max(self.peak, self.live)
        return answer

    def _note(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.live += size
        # The storage's Python object lives as long as the storage: torch keeps it with the C++ object.
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def measured_peak(call: Call, inputs: Sequence[torch.Tensor]) -> MeasuredPeak:
    """Run the call once and follow its operations' outputs.

    Compiled code does not dispatch: use `allocator_peak_bytes` for it.
    """
    held = list(inputs)
    if isinstance(call, torch.nn.Module):
        held += [*call.parameters(), *call.buffers()]
        held += [value for value in vars(call).values() if isinstance(value, torch.Tensor)]
    with torch.no_grad(), _LiveBytes() as mode:
        mode.ignore(held)
        answer = call(*inputs)
    return MeasuredPeak(mode.peak, mode.operations, answer)


def allocator_peak_bytes(call: Call, inputs: Sequence[torch.Tensor]) -> int:
    """Peak of the CPU allocator's own count during one call, by torch.profiler's memory events."""
    with torch.no_grad():
        call(*inputs)  # first calls pack weights and fill caches
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            answer = call(*inputs)
    del answer
    results = profile.profiler.kineto_results
    events = sorted(
        (event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"
    )
    live = peak = 0
    for _, size in events:
        live += size
        peak = max(peak, live)
    return peak
