"""What methods are built of: backbones, augmentation, features, the training loop, hardware."""
