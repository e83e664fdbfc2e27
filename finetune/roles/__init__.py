"""Roles in a tree with adapters of their own: their rows, and their places beside the agent."""
