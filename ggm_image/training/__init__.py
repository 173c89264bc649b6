"""Training: what a run is (`config`), what every run needs (`engine`), and the two kinds of run."""
