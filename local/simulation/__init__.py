"""A fleet in simulated time that the real rules of grading probe, list and take off sale. `./psx simulate`."""
