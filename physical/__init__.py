"""The body: where work runs. Placement options on a topology; telemetry and the gate come later."""
