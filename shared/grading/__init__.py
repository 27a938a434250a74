"""Exits are graded as a customer would use them, listed when they work, and taken off when they do not."""
