"""The kernels of benchmarks.hetero: what a text service does with a batch of documents, on one core.

`tokenise` is Python and regular expressions, `embed` is memory traffic, `dense` is arithmetic (one thread of BLAS),
`finish` sorts, formats and compresses.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

VOCABULARY, WIDTH, HIDDEN = 16_384, 256, 1024
WINDOW = 16
"""Tokens that one row of the matrix work stands for."""
TOP = 16
_WORD = re.compile(r"[A-Za-z]+|[0-9]|[^\sA-Za-z0-9]")
Floats = npt.NDArray[np.float32]


def documents(seed: int, nbytes: int) -> str:
    """Words of a made-up language, Zipf-distributed (Zipf, 1935)."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnoprstuvw", k=rng.randint(2, 9))) for _ in range(2000)]
    weights = [1.0 / (rank + 1) for rank in range(len(words))]
    found: list[str] = []
    length = 0
    while length < nbytes:
        more = rng.choices(words, weights, k=1000)
        found += more
        length += sum(map(len, more)) + len(more)
    return " ".join(found)[:nbytes]


def weights(seed: int = 0) -> dict[str, Floats]:
    """Table and matrices, the same for the same seed."""
    rng = np.random.default_rng(seed)
    shapes = {
        "table": (VOCABULARY, WIDTH),
        "up": (WIDTH, HIDDEN),
        "mid": (HIDDEN, HIDDEN),
        "down": (HIDDEN, WIDTH),
    }
    return {
        name: (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
        for name, shape in shapes.items()
    }


def tokenise(text: str) -> npt.NDArray[np.int32]:
    """Token ids [tokens]: pieces of at most four letters, hashed."""
    ids: list[int] = []
    for word in _WORD.findall(text):
        for at in range(0, len(word), 4):
            ids.append(zlib.crc32(word[at : at + 4].encode()) % VOCABULARY)
    return np.asarray(ids, dtype=np.int32)


def embed(tokens: npt.NDArray[np.int32], table: Floats) -> Floats:
    """[windows, WIDTH]: means of the rows of each window of tokens."""
    rows = len(tokens) // WINDOW
    found: Floats = table[tokens[: rows * WINDOW]].reshape(rows, WINDOW, WIDTH).mean(axis=1, dtype=np.float32)
    return found


def dense(rows: Floats, up: Floats, mid: Floats, down: Floats) -> Floats:
    """[windows, WIDTH]: three layers."""
    hidden = np.maximum(rows @ up, 0.0)
    hidden = np.maximum(hidden @ mid, 0.0)
    found: Floats = hidden @ down
    return found


def finish(rows: Floats) -> bytes:
    """The strongest features of each row as compressed JSON."""
    strongest = np.argsort(-rows, axis=1)[:, :TOP]
    told = [
        {"row": number, "top": [[int(i), round(float(rows[number, i]), 3)] for i in chosen]}
        for number, chosen in enumerate(strongest)
    ]
    return zlib.compress(json.dumps(told).encode(), 6)


def serially(text: str, shared: dict[str, Any]) -> bytes:
    """All of it for one batch: what every execution must give."""
    rows = embed(tokenise(text), shared["table"])
    return finish(dense(rows, shared["up"], shared["mid"], shared["down"]))
