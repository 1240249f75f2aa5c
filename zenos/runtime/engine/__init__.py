"""The inference engine: continuous batching over torch models."""
