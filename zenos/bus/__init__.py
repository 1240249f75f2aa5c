"""Message passing between the daemon and its workers."""
