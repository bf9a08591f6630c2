"""The coordinator's memory: tables, transactions and queries. Decides nothing and performs nothing."""
