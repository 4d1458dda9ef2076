"""From a function of tensors to a compiled kernel that is proven right and faster here (docs/compiler.md)."""
