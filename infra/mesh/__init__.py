"""The WireGuard mesh between gateways and relays: `python -m infra.mesh --help` (decision 0050)."""
