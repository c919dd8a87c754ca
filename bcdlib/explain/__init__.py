"""Why a model answers as it does: Grad-CAM, out-of-distribution, error analysis."""
