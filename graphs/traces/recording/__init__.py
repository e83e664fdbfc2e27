"""Calls of any program, out of the bodies that it sends to an endpoint and gets back."""
