"""An attack search: what it costs to find an input on which a system behaves badly (seed 8.4.1,
security amplification)."""
