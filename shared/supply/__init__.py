"""Devices that enrol themselves: identity, tokens, what their address says, and which relay serves them."""
