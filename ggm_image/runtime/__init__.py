"""The machine that the code runs on: ranks, devices, numerics, compilation, progress."""
