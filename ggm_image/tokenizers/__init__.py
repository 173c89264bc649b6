"""Tokenizers: images or text to codes, and back."""
