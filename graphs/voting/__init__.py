"""Votes: when they decide, who wins, and how many a reliability takes."""
