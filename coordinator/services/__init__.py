"""Use cases, one a file: what people, sites and the driver ask for, each in one transaction with its audit event.

Knows the database, the blobs and the authority; knows no gRPC, no HTTP and no settings.
"""
