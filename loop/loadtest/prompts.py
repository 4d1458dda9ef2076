"""Prompts of a wanted length: token ids where the server takes them, else words.

What a trace says two prompts have in common (block hashes) they have in common here, so that a server's prefix
cache finds what it would have found; everything else differs, also from one run to the next (`salt`).
"""

from __future__ import annotations

import hashlib
import random
from collections import OrderedDict
from collections.abc import Sequence

from loop.contracts import Request

POOL = 65_536
BLOCKS_KEPT = 4_096
"""Shared blocks that are kept as text."""
HEAD = 12
"""Tokens at the start of a piece that tell it from all others."""
TOKEN_IDS = tuple(str(i) for i in range(33, 127))
"""Printable ASCII in byte-level vocabularies, plain tokens in all that we know; below the size of any."""
_WORDS = (
    "able area army away baby back ball band bank base bear beat bird blue boat body book born call card "
    "care case cash cast city club coal coat cold cook cool copy corn cost crew crop dark data date dawn "
    "deal deep door down draw drop dust duty each east easy edge even face fact fair fall farm fast fear "
    "feed feel film find fine fire firm fish five flat flow food foot form four free fuel full fund game"
)
WORDS = tuple(_WORDS.split(" "))
"""Common words of four letters: one token each to most vocabularies, five (with the space) to bytes."""


class Prompts:
    """Makes prompts as the text that stands in the body of a request."""

    def __init__(
        self, *, as_tokens: bool, block_tokens: int, salt: int, tokens_per_word: float = 1.0
    ) -> None:
        """`block_tokens`: what one block hash stands for; `tokens_per_word`: of the server's tokenizer."""
        self._as_tokens = as_tokens
        self._block_tokens = block_tokens
        self._salt = salt
        self._tokens_per_word = tokens_per_word
        self._join = ",".join if as_tokens else " ".join
        self._units: Sequence[str] = TOKEN_IDS if as_tokens else WORDS
        rng = random.Random(f"pool/{salt}")
        self._pool = rng.choices(self._units, k=POOL)
        self._blocks: OrderedDict[int, str] = OrderedDict()

    def of(self, request: Request, input_tokens: int) -> str:
        """JSON text of the prompt: `[33,57,...]` or `"able area ..."`, about `input_tokens` long."""
        pieces: list[str] = []
        left = input_tokens
        if request.block_hashes:
            whole = min(len(request.block_hashes), input_tokens // self._block_tokens)
            pieces += [self._block(digest) for digest in request.block_hashes[:whole]]
            left -= whole * self._block_tokens
        own = self._units_for(left)
        if own > 0 or not pieces:
            pieces.append(self._piece(f"request/{request.id}", max(1, own)))
        text = self._join(pieces)
        return f"[{text}]" if self._as_tokens else f'"{text}"'

    def plain(self, key: str, units: int) -> str:
        """JSON text of a prompt of so many token ids or words, without what a trace says."""
        text = self._piece(key, units)
        return f"[{text}]" if self._as_tokens else f'"{text}"'

    def _units_for(self, tokens: int) -> int:
        return tokens if self._as_tokens else round(tokens / self._tokens_per_word)

    def _block(self, digest: int) -> str:
        found = self._blocks.get(digest)
        if found is None:
            found = self._piece(f"block/{digest}", max(1, self._units_for(self._block_tokens)))
            self._blocks[digest] = found
            if len(self._blocks) > BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        else:
            self._blocks.move_to_end(digest)
        return found

    def _piece(self, key: str, units: int) -> str:
        """A stretch of the pool behind a head that only this key has."""
        number = int.from_bytes(hashlib.blake2b(f"{self._salt}/{key}".encode(), digest_size=12).digest())
        at = number % POOL
        head = []
        for _ in range(min(HEAD, units)):
            number, digit = divmod(number, len(self._units))
            head.append(self._units[digit])
        rest = units - len(head)
        body: list[str] = []
        while rest > 0:
            body += self._pool[at : at + rest]
            rest = units - len(head) - len(body)
            at = 0
        return self._join(head + body)
