"""The run's log, the progress and tables made from it, and printing that never blocks."""
