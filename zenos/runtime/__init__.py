"""What runs inside workers; the only importer of torch."""
