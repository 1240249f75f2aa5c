"""Vocabulary shared by every layer: standard library and msgspec only."""
