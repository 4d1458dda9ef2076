"""The consciousness: what to do. Serving policies as living code, and what rewrites them."""
