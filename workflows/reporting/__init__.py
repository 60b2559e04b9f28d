"""The log of a run, and what a person sees of it."""
