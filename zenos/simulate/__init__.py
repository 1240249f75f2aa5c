"""The simulator: traces, the real kernel and a virtual clock. See docs/scheduling.md."""
