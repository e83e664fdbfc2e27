"""`reflux eval`: its options, the systems that it knows by name, and how an evaluation runs."""
