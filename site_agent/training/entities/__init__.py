"""What a text speaks of: labels for texts that have none. Knows no images and no model."""
