"""Trajectories out of files that other programs wrote: one module for a family of formats."""
