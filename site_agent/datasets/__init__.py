"""Which data of this hospital may be used at all: what is registered, its digest, counts and purposes.

The agent's half reads no record: the trainer's program inspects a file in a process of its own.
"""
