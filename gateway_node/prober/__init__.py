"""The prober: tunnels through every exit as a customer would, and grades what it sees."""
