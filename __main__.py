"""`python -m deepcac2` is the `deepcac2` command."""

from .cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
