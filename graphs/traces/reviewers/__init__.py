"""Several reviewers of one item: who decides, how far they agree, and what it costs them."""
