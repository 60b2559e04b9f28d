"""A run that nobody watches: its options, lock, log, deadline and end; for `workflows cron`."""
