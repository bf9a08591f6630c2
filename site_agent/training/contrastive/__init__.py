"""What images and texts learn from each other: losses, adapters and measures as pure functions of embeddings."""
