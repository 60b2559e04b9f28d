"""Running a task: its keys, the shuffle behind a 1:n step, checkpoints, and the run's report."""
