"""What predictions are worth: metrics, intervals, thresholds, published and recorded results."""
