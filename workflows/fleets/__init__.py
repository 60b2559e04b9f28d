"""Fleets of nodes by slot, and the transports that reach them: local, ssh, the hub of a run."""
