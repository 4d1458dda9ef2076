"""Memory for packed weights, in huge pages where the system gives them.

A weight that outgrows the caches is read from end to end at each call: with pages of 4 KiB the processor translates a new
address every few dozen cycles, in a virtual machine through two tables, and its prefetcher stops at the end of each page.
Linux gives pages of 2 MiB to memory that asks for them (`madvise`); elsewhere, and for small tensors, it is torch's own.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from math import prod

from execution.compiler.port import Tensor

HUGE_BYTES = 2 << 20
"""Of such a page on x86 and most of arm64."""


def zeros(shape: Sequence[int], like: Tensor) -> Tensor:
    """A tensor of zeros of the type of `like`, a CPU tensor."""
    size = prod(shape) * like.element_size()
    if size < HUGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return like.new_zeros(tuple(shape))
    import torch  # noqa: PLC0415

    try:
        memory = mmap.mmap(-1, size + HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:
        return like.new_zeros(tuple(shape))
    whole = torch.frombuffer(memory, dtype=torch.uint8)  # holds the mapping for as long as a view of it lives
    first = -whole.data_ptr() % HUGE_BYTES
    try:
        memory.madvise(mmap.MADV_HUGEPAGE, 0, len(memory))
    except OSError:  # a kernel without them
        return like.new_zeros(tuple(shape))
    return whole[first : first + size].view(like.dtype).view(tuple(shape))
