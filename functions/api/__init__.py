"""Accounts, resellers, peers, inventory, operations and pages over HTTP. Loads no chain SDK."""
