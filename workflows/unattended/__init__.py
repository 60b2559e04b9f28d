"""Runs that nobody watches: their options, lock, log, timeout and end."""
