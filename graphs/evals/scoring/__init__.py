"""When an answer is right: by text, number, choice or mathematics."""
