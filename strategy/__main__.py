"""`python -m strategy`."""

from strategy.cli import app

app(prog_name="strategy")
