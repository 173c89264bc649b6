"""From images to tokens on disk and back."""
