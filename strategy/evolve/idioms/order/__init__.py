"""In what order inside a replica."""
