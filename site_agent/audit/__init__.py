"""The site's audit log: a hash chain in the site's database, under signed checkpoints. No record, no action."""
