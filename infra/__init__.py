"""What runs the nodes in AWS; `infra.mesh` and `infra.nodes` are the programs that run on them."""
