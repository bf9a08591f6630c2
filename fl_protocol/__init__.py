"""What a coordinator and a site must agree on, since they would else corrupt, reject or misjudge a round.

This package computes and never acts: no sockets, no files, no clock, no randomness of its own, no torch.
"""
