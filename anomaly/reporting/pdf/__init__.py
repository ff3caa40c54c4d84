"""Report of one study as a tagged PDF."""
