"""The relay: peers' WebSockets in front, a CONNECT listener on the private mesh behind. No rules of the business here."""
