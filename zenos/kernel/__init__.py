"""The kernel decides: a pure step over state, events and time."""
