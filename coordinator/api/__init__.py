"""REST for people and their programs: authenticate, authorise, validate, call one service, render its answer.

Knows HTTP and the services; knows no table, no gRPC and no settings.
"""
