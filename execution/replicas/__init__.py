"""Replicas on real processes: who starts and ends them, and who sends requests to them."""
