"""The work of a task when Luigi runs it: execute keys, move pieces, commit, report."""
