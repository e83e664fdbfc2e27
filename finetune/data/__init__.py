"""Questions and rows: what a round asks, and what its student is trained on."""
