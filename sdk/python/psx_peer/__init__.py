"""The reference peer: shares a device's connection through a psx relay, with its owner's recorded agreement."""

__version__ = "0.1.0"
