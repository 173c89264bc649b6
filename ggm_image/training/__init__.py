"""Training of generators (`run`, `trainer`) and of VQGAN tokenizers (`vqgan`), on a shared `loop`."""
