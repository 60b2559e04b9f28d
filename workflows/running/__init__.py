"""What a task does when Luigi runs it: execute keys, move pieces, commit checkpoints, report."""
