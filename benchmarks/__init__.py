"""Programs that measure: what the README's figures come from, each one command."""
