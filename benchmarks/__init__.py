"""Ours beside the peers', in one run: `make bench`. Never run as tests, and never with company."""
