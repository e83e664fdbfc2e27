"""Trajectories: recorded, replayed, searched, reviewed."""
