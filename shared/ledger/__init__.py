"""Double-entry ledger: immutable transfers between named accounts, in femto-USDC."""
