"""Taxi rides, arranged by their number of passengers instead of by month."""
