"""Measurements. Each row has its measure, its yardstick from the same run, and the ratio; no test asserts a timing."""
