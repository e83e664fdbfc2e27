"""One copy's work on one question: clients, overseers, verifiers, tools, budgets. Knows no
graph."""
