"""The batched engine: many requests decoded together in this process."""
