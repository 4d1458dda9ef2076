"""Runs: one policy or an evolving system over windows, and what people look at afterwards."""
