"""``doctor``: is this machine fit to take part, does the agent run well, and what to do where it does not.

Changes nothing, and may be asked before there is anything here: no state folder, no enrolment, no coordinator.
"""
