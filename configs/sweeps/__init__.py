"""Sweeps: each file has a `get_overrides()`, a generator of what one trial overrides of a config."""
