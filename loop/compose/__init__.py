"""Where concrete layers meet: worlds, replays, scoring in the sandbox, and whole experiments."""
