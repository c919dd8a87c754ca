"""What answers to clicks: samples, leakage, threshold, upload."""
