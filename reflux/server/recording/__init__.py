"""Programs of others: passed on and recorded, or answered by a student under the old name."""
