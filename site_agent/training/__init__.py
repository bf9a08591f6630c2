"""The trainer: reads patient records and trains an adapter. It has no key and no network, and speaks through a folder."""
