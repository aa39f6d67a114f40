"""A training set gone through by eye: each picture accepted, thrown out, or its mask and face boxes mended."""
