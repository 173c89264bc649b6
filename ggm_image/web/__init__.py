"""The page of ``ggm-image demo``: sample, inpaint and look at the signal in a browser."""
