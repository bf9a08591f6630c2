"""The wire: generated stubs in ``v1`` and their one translation to our own values, ``convert``."""
