"""Inventory: what this machine is made of, written down as a profile that the rest of the platform can load."""
