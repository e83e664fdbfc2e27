"""Rows become a LoRA adapter."""
