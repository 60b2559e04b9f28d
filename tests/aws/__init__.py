"""A stand-in as strict as Amazon, in front of the servers that the tests run on.

Each thing that Amazon refuses is a `Rule` in a table, with Amazon's exact answer and its source.
"""
