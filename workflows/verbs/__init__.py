"""The verbs of the command line, one module each: ``add(parser)`` and ``run(arguments) -> exit code``."""
