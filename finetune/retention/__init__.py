"""What a student keeps: of the amplified system, of earlier rounds, and of its base's abilities."""
