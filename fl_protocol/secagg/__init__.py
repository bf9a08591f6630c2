"""Suite SA1: a secure sum among a cohort. Both roles, pure: bytes come in, bytes go out.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017), the variant against
an active server, on the complete graph, with fresh keys for every exchange. docs/protocol/secagg.md says every byte.

This room must not know transport, storage, time or randomness: entropy, keys and peers' pins are injected.
"""
