"""The half of Wardround that a hospital runs: it holds the keys and the policy, and drives the trainer."""
