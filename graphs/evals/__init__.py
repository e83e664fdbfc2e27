"""Evaluation: tasks, datasets, scorers, systems, results."""
