"""A regime: inputs alike enough that one variant is best for all of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

Inputs = Sequence[Tensor]

ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
TOKEN_BUCKETS = (8, 16, 32, 64, 128, 256, 512, 1024)
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True, order=True)
class Regime:
    """Bucket of rows x bucket of tokens x modality mix."""

    rows: int
    """Most rows of the bucket."""
    tokens: int
    """Longest sequence of the bucket; 0: the module takes none."""
    mix: str
    """A letter a modality: `1` every row has it, `0` none, `?` some."""

    def __str__(self) -> str:
        return f"rows<={self.rows} tokens<={self.tokens} mix={self.mix or 'any'}"


class Reader(Protocol):
    """Tells the regime of a module's inputs."""

    def read(self, inputs: Inputs) -> Regime | None:
        """The regime; None: unknown to variants, for the original alone. Takes microseconds."""
        ...

    def fit(self, inputs: Inputs, regime: Regime) -> Inputs:
        """The inputs padded to the regime's sizes; the very same where they are of that size."""
        ...

    def trim(self, answer: tuple[Tensor, ...], inputs: Inputs) -> tuple[Tensor, ...]:
        """The answer without what `fit` added."""
        ...


@dataclass(slots=True)
class MaskedBatch:
    """Reader for batches that say in a boolean input (rows, modalities) which row has what.

    Every input has the rows as dimension 0, and rows are independent of each other.
    """

    present: int
    """Which input says it."""
    tokens: int | None = None
    """Which input's dimension 1 is the sequence that varies, padded with 0."""
    inputs: int | None = None
    """How many there are; anything else is unknown."""
    row_buckets: tuple[int, ...] = ROW_BUCKETS
    token_buckets: tuple[int, ...] = TOKEN_BUCKETS
    _known: dict[tuple[tuple[int, ...], int, bytes], Regime | None] = field(default_factory=dict)

    def read(self, inputs: Inputs) -> Regime | None:
        """None for other inputs than expected, and for sizes beyond the largest bucket."""
        if self.inputs is not None and len(inputs) != self.inputs:
            return None
        present = inputs[self.present]
        if present.dtype is not torch.bool or present.dim() != 2 or present.device.type != "cpu":
            return None
        tokens = 0 if self.tokens is None else inputs[self.tokens].shape[1]
        key = (present.shape, tokens, present.numpy().tobytes())
        try:
            return self._known[key]
        except KeyError:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            return self._known.setdefault(key, self._regime(present, tokens))

    def fit(self, inputs: Inputs, regime: Regime) -> Inputs:
        """The last row again, so that the mix stays as told, and zeros at the end of the sequence."""
        more = regime.rows - inputs[self.present].shape[0]
        longer = 0 if self.tokens is None else regime.tokens - inputs[self.tokens].shape[1]
        if not more and not longer:
            return inputs
        fitted = list(inputs)
        if longer and self.tokens is not None:
            fitted[self.tokens] = functional.pad(fitted[self.tokens], (0, longer))
        if more:
            fitted = [torch.cat([value, value[-1:].expand(more, *value.shape[1:])]) for value in fitted]
        return fitted

    def trim(self, answer: tuple[Tensor, ...], inputs: Inputs) -> tuple[Tensor, ...]:
        """The first rows."""
        rows = inputs[self.present].shape[0]
        return tuple(value if value.shape[0] == rows else value[:rows] for value in answer)

    def _regime(self, present: Tensor, tokens: int) -> Regime | None:
        rows = _bucket(self.row_buckets, present.shape[0])
        length = _bucket(self.token_buckets, tokens) if self.tokens is not None else 0
        if rows is None or length is None or not present.shape[0]:
            return None
        every, some = present.all(0).tolist(), present.any(0).tolist()
        mix = "".join("1" if e else "?" if s else "0" for e, s in zip(every, some, strict=True))
        return Regime(rows, length, mix)


def _bucket(buckets: tuple[int, ...], size: int) -> int | None:
    at = bisect_left(buckets, size)
    return buckets[at] if at < len(buckets) and size > 0 else None
