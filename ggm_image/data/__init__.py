"""Encode images to token caches on disk, and decode them."""
