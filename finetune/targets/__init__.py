"""What a student learns from beyond texts: votes, a teacher's distributions, its own samples."""
