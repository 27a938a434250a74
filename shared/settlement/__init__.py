"""What served bytes earn: rates, and their accrual into the ledger."""
