"""Bearer tokens of an identity provider: its documents, its keys, and whether a token is one of its own for us.

Knows no request, no database and no service. An issuer is believed about nothing but the tokens that it signs for the
configured audience.
"""
