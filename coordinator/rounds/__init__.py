"""What a run, a round and an exchange do next, as pure tables: no clock, no database, no network.

A machine is a StrEnum of states, one transition table and a ``step``. The driver alone steps rounds and exchanges; it
passes ``now`` in and carries the effects out.
"""
