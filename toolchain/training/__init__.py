"""Training from image-level labels only."""
