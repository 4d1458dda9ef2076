"""Load tests: a workload replayed in real time against any OpenAI-compatible URL, and what came of it."""

from loop.loadtest.drive import Drive, Pacing
from loop.loadtest.http1 import HttpError
from loop.loadtest.outcome import Outcome
from loop.loadtest.page import render_page
from loop.loadtest.server import Server, TargetError, Traits, find_out
from loop.loadtest.summary import LoadReport, summarise

__all__ = [
    "Drive",
    "HttpError",
    "LoadReport",
    "Outcome",
    "Pacing",
    "Server",
    "TargetError",
    "Traits",
    "find_out",
    "render_page",
    "summarise",
]
