"""How a site gets its identity: keys made here that never leave, a pinned listener, one one-time code.

Knows no run and no dataset. Together with ``link`` it is the only room that speaks to the coordinator.
"""
