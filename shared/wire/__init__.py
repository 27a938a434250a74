"""Bytes in, events out: the protocols psx speaks, usable from a test without a loop. No I/O, no clock, nothing of ours."""
