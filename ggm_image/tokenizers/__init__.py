"""Images to grids of codes, and back."""
