"""`python -m execution`."""

from execution.cli import app

if __name__ == "__main__":
    app(prog_name="execution")
