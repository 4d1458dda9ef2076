"""Helix's published files as placement problems, and solutions checked in its own models."""
