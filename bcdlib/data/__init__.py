"""What comes in: names, labels, sources, decoding, the pixel cache, splits, checks."""
