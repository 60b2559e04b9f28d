"""Fleets of nodes, and the transports that reach them."""
