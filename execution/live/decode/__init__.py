"""A whole decode step as one compiled function: written for a model's shape, proven, and swapped in."""
