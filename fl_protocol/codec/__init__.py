"""Numbers and bytes on their way into a secure sum: fixed point, ring vectors, chunks, Merkle trees. Knows no key."""
