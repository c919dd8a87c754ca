"""What a trained model looks at, and whether an image is like those that it was trained on."""
