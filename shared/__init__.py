"""Everything that has rules, room by room; see docs/architecture.md for the order."""
