"""Which replica."""
