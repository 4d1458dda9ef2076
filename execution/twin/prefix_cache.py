"""Prefix cache of one replica, and the index that tells a router which replica holds which prefix.

A cached entry is one hash of `Request.block_hashes`: `block_tokens` prompt tokens. Entries that a running
request uses are pinned; the others lie in the free memory in order of last use and are evicted as the memory
is needed, the end of a prefix before its beginning (as vLLM frees blocks in reverse order).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class PrefixIndex:
    """Hash -> bit mask of the replicas that hold it. One per model."""

    __slots__ = ("holders",)

    def __init__(self) -> None:
        self.holders: dict[int, int] = {}

    def add(self, digest: int, bit: int) -> None:
        """The replica of this bit holds the block now."""
        self.holders[digest] = self.holders.get(digest, 0) | bit

    def remove(self, digest: int, bit: int) -> None:
        """It does no more."""
        left = self.holders.get(digest, 0) & ~bit
        if left:
            self.holders[digest] = left
        else:
            self.holders.pop(digest, None)

    def matches(self, hashes: Sequence[int]) -> dict[int, int]:
        """Bit of a replica -> how many leading blocks it holds; replicas that hold none are absent."""
        holders = self.holders
        found: dict[int, int] = {}
        mask = holders.get(hashes[0], 0) if hashes else 0
        depth = 0
        while mask:
            depth += 1
            further = mask & holders.get(hashes[depth], 0) if depth < len(hashes) else 0
            gone = mask & ~further
            while gone:
                bit = gone & -gone
                found[bit] = depth
                gone ^= bit
            mask = further
        return found


class PrefixCache:
    """Which prefix blocks one replica holds, and who uses them."""

    __slots__ = ("_bit", "_idle", "_index", "_pins", "blocks_each")

    def __init__(self, index: PrefixIndex, bit: int, blocks_each: int) -> None:
        self._index = index
        self._bit = bit
        self.blocks_each = blocks_each
        """KV blocks of one entry."""
        self._pins: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = (
            OrderedDict()
        )  # a dict is slow to find its first key again and again

    @property
    def idle_blocks(self) -> int:
        """KV blocks of entries that nobody uses: evictable."""
        return len(self._idle) * self.blocks_each

    def match(self, hashes: Sequence[int]) -> int:
        """How many leading entries are held."""
        count = 0
        for digest in hashes:
            if digest not in self._pins and digest not in self._idle:
                break
            count += 1
        return count

    def idle_among(self, hashes: Sequence[int]) -> int:
        """KV blocks of the idle ones among these: pinning them takes that much memory."""
        return len(self._idle.keys() & hashes) * self.blocks_each

    def pin(self, hashes: Sequence[int]) -> None:
        """One more user of each of these held entries."""
        for digest in hashes:
            if digest in self._idle:
                del self._idle[digest]
                self._pins[digest] = 1
            else:
                self._pins[digest] += 1

    def insert(self, digest: int) -> bool:
        """Offer a computed block, pinned by its maker; False: somebody else's copy is held already."""
        if digest in self._pins or digest in self._idle:
            return False
        self._pins[digest] = 1
        self._index.add(digest, self._bit)
        return True

    def release(self, refs: Sequence[int]) -> int:
        """One user less of each entry; returns the KV blocks that became idle."""
        idle = 0
        for digest in reversed(refs):
            left = self._pins[digest] - 1
            if left:
                self._pins[digest] = left
            else:
                del self._pins[digest]
                self._idle[digest] = None
                idle += 1
        return idle * self.blocks_each

    def shrink(self, blocks: int) -> None:
        """Evict the entries unused for longest until idle ones take at most this many KV blocks."""
        idle = self._idle
        while idle and len(idle) * self.blocks_each > blocks:
            digest, _ = idle.popitem(last=False)
            self._index.remove(digest, self._bit)

    def clear(self) -> None:
        """The replica is gone."""
        for digest in (*self._pins, *self._idle):
            self._index.remove(digest, self._bit)
        self._pins.clear()
        self._idle.clear()
