"""Every touch of Luigi's own settings and its private parts."""
