"""The commands of `autopoiesis loop`, one module each."""
