"""Logging of commands and of the processes that they start: warnings and worse, key=value, on stderr; stdout belongs to results."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import structlog


class _Told:
    """A logger whose lines go to somebody."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.msg = self.debug = self.info = self.warning = self.error = self.critical = tell
        self.exception = self.failure = self.log = tell


def configure_logging(level: int = logging.WARNING, *, tell: Callable[[str], None] | None = None) -> None:
    """Send what is logged at `level` and above to stderr, or, without times, to `tell`."""
    if tell is not None:
        structlog.configure(
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.format_exc_info,
                structlog.processors.KeyValueRenderer(key_order=["level", "event"]),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(level),
            logger_factory=lambda *_: _Told(tell),
        )
        return
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # stderr of the moment, not of now
    )
