"""Published weights files, read without running anything in them."""
