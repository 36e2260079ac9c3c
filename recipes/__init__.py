"""One readable training script per self-supervised method."""
