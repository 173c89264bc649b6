"""A folder of tokens, written shard by shard."""
