"""Reading payments from chains. Loaded by the x402 function alone; the rules on what a payment is are pure."""
