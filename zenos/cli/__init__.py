"""The zenos command."""
