"""Everything that is known before a run: sources, datasets, keys, shards and identities."""
