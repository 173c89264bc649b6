"""Training of a VQGAN tokenizer."""
