"""KV of prompts that were seen before, by the hash of each block and all before it.

Blocks are copied out when a prompt has been computed, when a sequence ends, and when it is preempted, and copied in
when one is admitted. A copy has no owner but the store, so nothing has to be counted: the block that was used
longest ago goes first, and of one prompt the last one.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence as Seq

import torch

from execution.engines.models import EngineModelConfig
from execution.engines.torch.kv import LaneCache

Digest = bytes


def block_digests(tokens: Seq[int], block_tokens: int, known: Seq[Digest] = ()) -> list[Digest]:
    """Digest of each full block, which depends on all tokens before it; `known`: those of the first blocks."""
    digests = list(known)
    parent = digests[-1] if digests else b""
    for start in range(len(digests) * block_tokens, len(tokens) - block_tokens + 1, block_tokens):
        block = array("q", tokens[start : start + block_tokens]).tobytes()
        parent = hashlib.blake2b(block, digest_size=16, key=parent).digest()
        digests.append(parent)
    return digests


class PrefixStore:
    """A pool of blocks, least recently used ones replaced."""

    def __init__(self, config: EngineModelConfig, blocks: int, block_tokens: int, cache: LaneCache) -> None:
        self._block_tokens = block_tokens
        self._cache = cache
        self._where: OrderedDict[Digest, int] = OrderedDict()  # oldest use first
        kinds = 2 * config.num_key_value_heads
        shape = (blocks, kinds, block_tokens, config.head_dim)
        self._pools = [torch.empty(shape, dtype=cache.dtype, device=cache.device) for _ in cache.layers]
        self._free = list(range(blocks - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._where)

    def match(self, digests: Seq[Digest]) -> int:
        """How many of the first blocks are here."""
        count = 0
        for digest in digests:
            if digest not in self._where:
                break
            count += 1
        return count

    def fetch(self, digests: Seq[Digest], lane: int) -> None:
        """Copy blocks, all of which are here, to the beginning of a lane."""
        ids = torch.tensor([self._where[digest] for digest in digests], device=self._cache.device)
        self._touch(digests)
        for pool, layer in zip(self._pools, self._cache.layers, strict=True):
            target = layer[lane, :, : len(digests) * self._block_tokens]
            self._blocks(target).copy_(pool[ids].transpose(0, 1))

    def save(self, digests: Seq[Digest], lane: int) -> None:
        """Copy the blocks at the beginning of a lane that are not here yet, as far as the pool goes."""
        digests = digests[: len(self._free) + len(self._where)]
        self._touch(digests)  # what is here of them is not replaced by the rest
        fresh = [(i, digest) for i, digest in enumerate(digests) if digest not in self._where]
        if not fresh:
            return
        places = [self._place() for _ in fresh]
        sources = torch.tensor([i for i, _ in fresh], device=self._cache.device)
        targets = torch.tensor(places, device=self._cache.device)
        for pool, layer in zip(self._pools, self._cache.layers, strict=True):
            blocks = layer[lane, :, : len(digests) * self._block_tokens]
            blocks = self._blocks(blocks).transpose(0, 1)
            pool[targets] = blocks[sources]
        self._where.update(zip((digest for _, digest in fresh), places, strict=True))
        self._touch(digests)

    def forget(self, digests: Seq[Digest]) -> None:
        """These blocks hold nonsense."""
        self._free += [self._where.pop(digest) for digest in digests if digest in self._where]

    def clear(self) -> None:
        """Forget everything: the model is another one."""
        self._free += self._where.values()
        self._where.clear()

    def _blocks(self, lane: torch.Tensor) -> torch.Tensor:
        """[heads, positions, head_dim] as [heads, blocks, block_tokens, head_dim]."""
        return lane.view(lane.shape[0], -1, self._block_tokens, lane.shape[2])

    def _place(self) -> int:
        """A block to write to: a free one, or that of the longest unused digest."""
        return self._free.pop() if self._free else self._where.popitem(last=False)[1]

    def _touch(self, digests: Seq[Digest]) -> None:
        """Used now; a prompt's first blocks are kept longest, since later ones are of no use without them."""
        for digest in reversed(digests):
            if digest in self._where:
                self._where.move_to_end(digest)
