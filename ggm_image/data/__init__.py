"""From pictures to tokens on disk and back."""
