"""``doctor``: is everything there that a coordinator needs, does it run well, and what to do where it does not.

Changes nothing. Its checks ask the rooms that do the work, and judge nothing that a room judges itself.
"""
