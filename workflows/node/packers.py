"""Programs that compress checkpoints, by name, as a driver and its nodes start them."""

# -n: no name and no time, so that the same bytes give the same bytes.
PACKERS = {"zstd": ["zstd", "-q", "-3", "-c"], "gzip": ["gzip", "-6", "-n", "-c"]}
UNPACKERS = {"zstd": ["zstd", "-q", "-d", "-c"], "gzip": ["gzip", "-d", "-c"]}
