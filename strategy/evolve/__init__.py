"""Evolution: policies are written, proven in a sandbox, scored on the past, and handed over (docs/evolution.md)."""
