"""The whole network on one machine: parts, supervisor, demo. Nothing of it is deployed."""
