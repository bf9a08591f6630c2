"""For tests and benchmarks only: a whole federation of roles in memory, and what it needs. No product imports it."""
