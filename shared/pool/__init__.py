"""The live pool: what a username asks for, which exits are there, and which one a connection gets."""
