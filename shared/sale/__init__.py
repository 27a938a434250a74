"""The sale: a price sheet, a payment on chain, and a key that is capped at what was paid for."""
