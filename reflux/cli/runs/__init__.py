"""Commands of a run: its rounds, its students and its demonstrations."""
