"""The store remembers: one transaction for each step of the kernel."""
