"""``python -m workflows`` is ``workflows``."""

from workflows.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
