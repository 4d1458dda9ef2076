"""Recounts what engines keep in running sums, sequence by sequence."""

from __future__ import annotations

from execution.twin import Twin
from execution.twin.engine import Engine
from execution.twin.sequence import Sequence


def audit(twin: Twin) -> None:
    """Raise AssertionError when a sum is not what its parts say, or memory is overcommitted."""
    for replica in twin._deployment.replicas:
        flying = [t.seq for t in twin._transfers.flying.values() if t.source is replica]
        audit_engine(replica.engine, flying)


def audit_engine(engine: Engine, flying: list[Sequence]) -> None:
    decoding = [entry[2] for entry in engine.finishing]
    contexts = [seq.offset + engine.step for seq in decoding]
    prompts = {id(seq): seq for seq, _ in engine._batch}
    if engine.partial is not None:
        prompts[id(engine.partial)] = engine.partial
    prefilling = list(prompts.values())
    assert engine.decoding == len(decoding)
    assert engine.kv_tokens == sum(contexts)
    assert min(engine.phases) >= 0
    assert sum(engine.phases) == len(decoding)
    held = sum(-(-context // 16) for context in contexts)
    held += sum(seq.blocks for seq in (*prefilling, *flying))
    shared = sum(seq.shared for seq in (*decoding, *prefilling, *flying))
    pinned = 0
    cache = engine._cache
    if cache is not None:
        pinned = len(cache._pins) * cache.blocks_each
        users = [ref for seq in (*decoding, *prefilling, *flying) for ref in seq.refs or ()]
        assert sum(cache._pins.values()) == len(users)
        assert set(users) == set(cache._pins)
        assert not cache._pins.keys() & cache._idle.keys()
    used = held - shared + pinned
    assert engine.free_blocks() == engine.capacity_blocks - used
    assert engine.free_blocks() >= 0
    assert engine.running <= max(engine.max_seqs, len(decoding) + len(prefilling))
    assert len({id(seq) for seq in (*decoding, *prefilling, *flying)}) == len(decoding) + len(
        prefilling
    ) + len(flying)
    queued = [entry[3] for entry in engine.waiting]
    assert engine.prompt_tokens == sum(s.target for s in queued if not s.resident) + sum(
        s.target - s.computed for s in prefilling
    )
    assert engine.outstanding_tokens() >= len(queued) + len(decoding)
