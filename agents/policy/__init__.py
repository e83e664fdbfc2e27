"""What untrusted text may do: which calls there are, and what it may reach."""
