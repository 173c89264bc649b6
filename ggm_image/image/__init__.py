"""Images as files and pixels; no model."""
