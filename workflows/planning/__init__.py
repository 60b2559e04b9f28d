"""Planning: from a source to keys, shards and identities; nothing runs."""
