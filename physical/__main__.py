"""`python -m physical`."""

from physical.cli import app

app(prog_name="physical")
