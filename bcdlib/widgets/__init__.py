"""What answers to clicks: samples, threshold, upload."""
