"""Lambda functions: parse, call a room, map the answer. No rules live here."""
