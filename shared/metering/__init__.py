"""Bytes are counted once, by opaque key id; a flush answers which keys reached their cap."""
