"""Rendered scenes of coloured shapes: facts by lot, pixels and texts from the facts, shards from both."""
