"""The sale over HTTP, and the only function that loads chain SDKs (when a payment is judged, not before)."""
