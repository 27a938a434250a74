"""The network looks after itself: what was, what is wrong now, and who is told. Nothing here changes infrastructure."""
