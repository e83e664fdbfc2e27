"""Defences against what passes through distillation: what rows lose before they are learned."""
