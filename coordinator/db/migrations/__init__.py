"""The schema's history. Changes go by expand, migrate, contract."""
