"""Users' own code: where it is, how it is loaded, and their graphs as systems of an evaluation."""
