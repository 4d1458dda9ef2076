"""Who may ask: bearer tokens, each with its customer's tier.

A file holds one token a line, `TOKEN [TIER]`; empty lines and lines that begin with # are left out. The environment
variable holds the same, separated by commas. Only keyed digests are kept: what is compared tells nothing of a
token by the time it takes, and a dump of the memory's configuration shows none.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

import structlog

ENVIRONMENT = "AUTOPOIESIS_TOKENS"
MIN_TOKEN_CHARACTERS = 8
_TOKEN = re.compile(r"[A-Za-z0-9._~+/:@-]+=*")
_log = structlog.get_logger(__name__)


class AccessError(ValueError):
    """Tokens that cannot be used; the message names the place and never the token."""


class AccessTokens:
    """The tokens that are let in. None at all: everybody is, as tier 0."""

    def __init__(self, tiers: Mapping[str, int] | None = None) -> None:
        self._key = secrets.token_bytes(32)
        self._tiers = {self._digest(token.encode()): tier for token, tier in (tiers or {}).items()}

    @classmethod
    def from_lines(cls, lines: Iterable[str], place: str) -> AccessTokens:
        """Parse `TOKEN [TIER]` lines. Raises AccessError."""
        tiers: dict[str, int] = {}
        for number, line in enumerate(lines, start=1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            token, tier = words[0], words[1] if len(words) > 1 else "0"
            if len(words) > 2 or not _TOKEN.fullmatch(token) or not re.fullmatch(r"\d{1,4}", tier):
                raise AccessError(
                    f"{place}, entry {number}: expected TOKEN [TIER], the tier a number from 0 up"
                )
            if len(token) < MIN_TOKEN_CHARACTERS:
                raise AccessError(
                    f"{place}, entry {number}: a token needs {MIN_TOKEN_CHARACTERS} characters or more"
                )
            if token in tiers:
                raise AccessError(f"{place}, entry {number}: this token is there already")
            tiers[token] = int(tier)
        if not tiers:
            raise AccessError(f"{place}: no token in it; leave it out to let everybody in from this machine")
        return cls(tiers)

    @classmethod
    def from_file(cls, path: Path) -> AccessTokens:
        """Read a token file. Raises AccessError."""
        try:
            text = path.read_text(encoding="utf-8")
            mode = path.stat().st_mode
        except (OSError, UnicodeDecodeError) as error:
            raise AccessError(f"cannot read the token file {path}: {error}") from error
        if mode & (stat.S_IRGRP | stat.S_IROTH):
            _log.warning("others on this machine can read the token file", path=str(path))
        return cls.from_lines(text.splitlines(), str(path))

    @classmethod
    def from_environment(cls, name: str = ENVIRONMENT) -> AccessTokens:
        """Read an environment variable; unset: no tokens. Raises AccessError."""
        given = os.environ.get(name)
        return cls() if given is None else cls.from_lines(given.split(","), f"${name}")

    def __bool__(self) -> bool:
        return bool(self._tiers)

    def __repr__(self) -> str:
        return f"AccessTokens({len(self._tiers)} tokens)"

    def tier(self, authorization: bytes | None) -> int | None:
        """Tier of the customer whose `Authorization` header this is; None: not let in."""
        if not self._tiers:
            return 0
        scheme, _, token = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        return self._tiers.get(self._digest(token.strip()))

    def _digest(self, token: bytes) -> bytes:
        """Keyed, so that nobody can choose a token by its digest, and looking it up leaks nothing by its time."""
        return hmac.digest(self._key, token, hashlib.sha256)
