"""What the project costs, measured against the same commands under ``xargs -P``: the floor.

``python -m benchmarks NAME`` runs one, ``python benchmarks/table.py`` makes the page of all.
"""
