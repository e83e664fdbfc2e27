"""What one copy does with one question: clients, overseers, verifiers, tools, budgets. No graph."""
