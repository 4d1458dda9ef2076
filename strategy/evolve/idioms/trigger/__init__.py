"""When to replan."""
