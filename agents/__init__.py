"""One copy's work on one question: clients, overseers, checkers, budgets. Knows no graph."""

DISTRIBUTION = "reflux-ida"
"""Tells this package from PyPI's `openai-agents`, which also imports as `agents`."""
