"""What touches Luigi's own settings and its private parts."""
