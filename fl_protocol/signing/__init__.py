"""Signatures over exact bytes: pack fields, sign them, verify them. Knows no certificate, no file and no protobuf."""
