"""Engines: what turns prompts into tokens. Each kind has a folder; all share tokenizers and models by name."""
