"""Rows of a CSV file, classified in pandas data frames on all nodes."""
