"""Files of questions: their formats, and the forms of their records."""
