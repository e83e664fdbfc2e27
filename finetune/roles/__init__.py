"""Roles in a tree with adapters of their own: their rows and places, and how a run learns them."""
