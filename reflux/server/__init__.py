"""The OpenAI-compatible server of a run folder."""
