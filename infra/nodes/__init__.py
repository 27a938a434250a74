"""What makes an EC2 instance a relay or a gateway: its start, end and units. The stack: `nodes.yml` (decision 0051)."""
