"""The gateway: customers' HTTP and SOCKS5 listeners, exits behind relays or modem ports, and (beside it) the prober."""
