"""Training: corpus, tokenizer, packing, the loop, checkpoints, and publishing what came of it."""
