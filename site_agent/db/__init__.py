"""The site's one SQLite file: its tables, and the one way to write to it. Knows no protocol and no policy."""
