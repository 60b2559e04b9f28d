"""Further pipelines, a folder each: tasks, the scripts they ship, a README that shows what to see.

They do not know each other. `workflows.tasks` is the main pipeline.
"""
