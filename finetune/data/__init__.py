"""Trajectories and files become training rows."""
