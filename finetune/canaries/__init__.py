"""Behavioral canaries: whether a student still behaves as its base does, beside what it can do."""
