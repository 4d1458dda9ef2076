"""Which replica should hold which prompt prefixes, by what was sent there: bounded by its KV cache, least recently
used first out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from execution.replicas.replica import Replica
from execution.twin.prefix_cache import PrefixIndex
from loop.contracts import EngineFeature

BLOCK_TOKENS = 16
"""Tokens of one entry, as of vLLM's blocks and the twin's."""
MAX_BLOCKS = 1 << 16
"""Of one replica, whatever its KV cache holds."""


def block_hashes(token_ids: Sequence[int]) -> tuple[int, ...]:
    """One hash per whole block, each of the prefix up to its end."""
    hashes: list[int] = []
    digest = 0
    for end in range(BLOCK_TOKENS, len(token_ids) + 1, BLOCK_TOKENS):
        digest = hash((digest, tuple(token_ids[end - BLOCK_TOKENS : end])))
        hashes.append(digest)
    return tuple(hashes)


class PrefixRecord:
    """Prefixes of one model's replicas."""

    def __init__(self) -> None:
        self._index = PrefixIndex()
        self._held: dict[int, OrderedDict[int, None]] = {}
        """Bit -> hashes, least recently used first."""
        self._bits: dict[int, int] = {}
        """Replica id -> bit."""

    def cached(
        self, hashes: Sequence[int], input_tokens: int, replicas: Sequence[Replica]
    ) -> tuple[int, ...]:
        """Prompt tokens that each replica should find in its cache; empty: none anywhere."""
        found = self._index.matches(hashes[: input_tokens // BLOCK_TOKENS]) if self._held else None
        if not found:
            return ()
        most = (input_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS  # the last token is always computed
        return tuple(min(found.get(self._bits.get(r.id, 0), 0) * BLOCK_TOKENS, most) for r in replicas)

    def add(self, replica: Replica, hashes: Sequence[int]) -> None:
        """It has computed this prefix."""
        if replica.info is None or EngineFeature.PREFIX_CACHE not in replica.info.features:
            return
        bit = self._bits.get(replica.id) or self._take_bit(replica.id)
        held = self._held[bit]
        for digest in reversed(hashes):  # the end of a prefix is of no use without its beginning
            if digest in held:
                held.move_to_end(digest)
            else:
                held[digest] = None
                self._index.add(digest, bit)
        most = min(replica.info.kv_capacity_tokens // BLOCK_TOKENS, MAX_BLOCKS)
        while len(held) > most:
            digest, _ = held.popitem(last=False)
            self._index.remove(digest, bit)

    def keep_only(self, replica_ids: frozenset[int]) -> None:
        """The others are gone."""
        for identity in [i for i in self._bits if i not in replica_ids]:
            bit = self._bits.pop(identity)
            for digest in self._held.pop(bit):
                self._index.remove(digest, bit)

    def _take_bit(self, identity: int) -> int:
        bit = 1
        while bit in self._held:
            bit <<= 1
        self._held[bit] = OrderedDict()
        self._bits[identity] = bit
        return bit
