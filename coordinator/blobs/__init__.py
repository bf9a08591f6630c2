"""Large bytes by their SHA-256: masked vectors, sums, public states, release files. Knows no table and no meaning."""
