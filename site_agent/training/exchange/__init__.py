"""What a site puts into the secure sum: one file an algorithm's site half."""
