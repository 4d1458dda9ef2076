"""`python -m loop` is `autopoiesis loop`."""

from loop.cli import app

if __name__ == "__main__":
    app(prog_name="python -m loop")
