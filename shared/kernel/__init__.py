"""Ids, money, time and refusal codes: the words every room shares. Imports nothing of ours and does no I/O."""
