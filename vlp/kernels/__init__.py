"""Memory-linear forms of what the losses compute over all pairs; each equals its plain N x N reference."""
