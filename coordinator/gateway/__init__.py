"""gRPC for sites: authenticate the certificate, bound the message, call one service, translate its answer.

Knows protobuf, gRPC and the services; knows no table, no HTTP and no settings.
"""
