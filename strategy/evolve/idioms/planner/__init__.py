"""What to replan to."""
