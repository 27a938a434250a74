"""What stands before every loop that acts by itself: kill switch, loop limits, audit, approvals, live settings."""
