"""Weights in panels: the layout in which linear kernels read them.

    packed(weight [inputs, outputs], width=64, streams=4)    # [panels * 4, inputs, 16]

A panel is `width` outputs wide; each row of it is one step of the sum. In several `streams` it stands in as many places,
which are read side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from execution.compiler.backends.tvm import pages
from execution.compiler.port import Tensor

if TYPE_CHECKING:
    from execution.compiler.backends.tvm.emit import Buffer, Emit
    from execution.compiler.backends.tvm.maths import Expr

CACHE_LINE = 64


def packed(weight: Tensor, width: int, streams: int = 1) -> Tensor:
    """[inputs, outputs] as [panels * streams, inputs, width / streams]; the last panel is filled up with zeros.

    A panel in several `streams` stands in as many places, which are read side by side.
    """
    inputs, outputs = weight.shape
    part = width // streams
    count = -(-outputs // width) * streams
    made = pages.zeros((count, inputs, part), weight)
    whole = outputs // part
    made[:whole] = weight[:, : whole * part].reshape(inputs, whole, part).transpose(0, 1)
    if whole * part != outputs:
        made[whole, :, : outputs - whole * part] = weight[:, whole * part :]
    return made


def filled_up(vector: Tensor, width: int) -> Tensor:
    """[outputs], filled up with zeros to whole panels."""
    outputs = vector.shape[0]
    full = vector.new_zeros(-(-outputs // width) * width)
    full[:outputs] = vector
    return full


def place(panel: Expr, at: Expr, offset: int, width: int, streams: int) -> tuple[Expr, Expr, int]:
    """Where a panel's numbers from `offset` on are, for input `at`."""
    part = width // streams
    return panel * streams + offset // part, at, offset % part


def ask_for_row(  # noqa: PLR0917
    k: Emit, weight: Buffer, panel: Expr, at: Expr, width: int, streams: int, size: int
) -> None:
    """Have `width` numbers of `size` bytes fetched, a cache line at a time."""
    for offset in range(0, width, min(CACHE_LINE // size, width // streams)):
        k.ask_for(weight, *place(panel, at, offset, width, streams))
