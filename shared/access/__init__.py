"""Who may do what: accounts, API keys, pool access keys, and how their secrets are kept."""
