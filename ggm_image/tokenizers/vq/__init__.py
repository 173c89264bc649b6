"""Networks of the tokenizer families."""
