"""Programs of others, passed on to their endpoint and recorded."""
