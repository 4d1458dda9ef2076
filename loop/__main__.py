"""`python -m loop` is `autopoiesis loop`."""

from loop.cli import app
from loop.logs import configure_logging

if __name__ == "__main__":
    configure_logging()
    app(prog_name="python -m loop")
