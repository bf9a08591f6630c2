"""Identity on the wire: TLS keys, certificates and the name in them. Knows no file, no socket, no authority's policy.

A site's TLS key lives as short as its certificate; the key that signs its statements is another (``signing``).
"""
