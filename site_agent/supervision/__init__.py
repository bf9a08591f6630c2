"""The shell around the session machine: performs its commands with the seams that the daemon composed.

Nothing here reads settings, and nothing here decides what follows from what: that is ``session.machine``.
"""
