"""Reflux: Iterated Distillation and Amplification on language-model agents."""
