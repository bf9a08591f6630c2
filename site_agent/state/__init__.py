"""What this site must not lose in a crash, and what it must not do twice."""
