"""Learning from frozen features: `logistic` (a linear map), `neighbours` (k-NN), `draw` (which pictures are seen)."""
