"""Hypothesis strategies: arbitrary small workloads."""

from __future__ import annotations

from hypothesis import strategies as st

from loop.contracts import Request, Workload


@st.composite
def workloads(draw: st.DrawFn, *, max_size: int = 40, min_size: int = 0) -> Workload:
    gaps = draw(st.lists(st.floats(0, 100, allow_subnormal=False), min_size=min_size, max_size=max_size))
    with_blocks = draw(st.booleans())
    requests = []
    time_s = 0.0
    for number, gap in enumerate(gaps):
        time_s += gap
        tokens = draw(st.integers(1, 3000))
        blocks = draw(st.lists(st.integers(0, 30), max_size=-(-tokens // 512))) if with_blocks else []
        model = draw(st.sampled_from(["a", "b"]))
        requests.append(
            Request(
                number,
                time_s,
                model,
                tokens,
                draw(st.integers(1, 500)),
                tuple(blocks),
                draw(st.integers(0, 2)),
            )
        )
    return Workload("w", tuple(requests), "test", notes={"01.made": "by hypothesis"})


def well_formed(workload: Workload) -> None:
    """What every workload must be: ids by position, ascending times from 0 on, positive lengths."""
    previous_s = 0.0
    for position, request in enumerate(workload.requests):
        assert request.id == position
        assert request.arrival_s >= previous_s
        assert request.input_tokens >= 1
        assert request.output_tokens >= 1
        assert len(request.block_hashes) <= -(-request.input_tokens // workload.block_tokens)
        previous_s = request.arrival_s
