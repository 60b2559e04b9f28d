"""The verbs of the command line, one module each: ``add(parser)``, ``run(arguments) -> code``."""
