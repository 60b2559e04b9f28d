"""A run that nobody watches: its options, lock, log, deadline and end. `workflows cron` joins them."""
