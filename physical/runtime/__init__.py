"""Task graphs really executed, by the same decisions that are tried on virtual time."""
