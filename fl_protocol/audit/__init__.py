"""Evidence: typed events, the log that they form, its signed checkpoints, the check of it all. Knows no database."""
