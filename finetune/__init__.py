"""Trajectories become rows, rows a student, and the student the agent of the next round."""
