"""`python -m hw_profiles`."""

from hw_profiles.cli import app

app(prog_name="profiles")
