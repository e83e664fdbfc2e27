"""`python -m reflux`."""

from reflux.cli import run

run()
