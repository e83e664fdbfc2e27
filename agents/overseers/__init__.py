"""Who decomposes a question and combines the answers."""
