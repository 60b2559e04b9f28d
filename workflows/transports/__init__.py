"""Ways to reach a node's runtime. All give the same thing: a wire to one session of it."""
