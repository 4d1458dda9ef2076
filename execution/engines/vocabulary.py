"""The vocabulary of the built-in models: 256 bytes, the ends of texts, and the roles of a conversation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

BOS_ID: Final = 256
EOS_ID: Final = 257
PAD_ID: Final = 258
ROLE_IDS: Final[Mapping[str, int]] = {"system": 259, "user": 260, "assistant": 261}
SPECIAL_TOKENS: Final[Mapping[str, int]] = {
    "<|bos|>": BOS_ID,
    "<|eos|>": EOS_ID,
    "<|pad|>": PAD_ID,
    **{f"<|{role}|>": token_id for role, token_id in ROLE_IDS.items()},
}
BYTE_VOCAB_SIZE: Final = 264
"""Two to spare, so that it divides by eight."""
