"""Checks that need nobody's word: a release folder's signature and digests, an exported log's chain and checkpoints."""
