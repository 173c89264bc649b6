"""Sets of images, from image files to streams of tar shards."""
