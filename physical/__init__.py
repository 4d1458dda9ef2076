"""The body: what devices there are and how they fare, where work runs, and the gate to all changes."""
