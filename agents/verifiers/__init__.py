"""Who doubts an answer: rules, a second method, red flags."""
