"""`./psx demo`: the loop, step by step, each step asserted against what can be seen from outside."""
