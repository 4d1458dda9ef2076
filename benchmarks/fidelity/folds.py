"""k folds by content: which fold a row is in does not depend on the rows around it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def folds(rows: Sequence[T], key: Callable[[T], Hashable], k: int = 5) -> Iterator[tuple[list[T], list[T]]]:
    """(training rows, judged rows) of each fold that has judged rows. Rows of one key stay together."""
    keys = sorted({_digest(key(row)) for row in rows})
    fold_of = {digest: i % k for i, digest in enumerate(keys)}
    for fold in range(min(k, len(keys))):
        judged = [row for row in rows if fold_of[_digest(key(row))] == fold]
        training = [row for row in rows if fold_of[_digest(key(row))] != fold]
        yield training, judged


def _digest(key: Hashable) -> str:
    return hashlib.sha256(repr(key).encode()).hexdigest()
