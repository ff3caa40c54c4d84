"""A study on paper, as a tagged PDF."""
