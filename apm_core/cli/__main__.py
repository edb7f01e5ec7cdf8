"""`python -m apm_core.cli`: the command without an installation."""

from apm_core.cli.commands import main

if __name__ == "__main__":
    main(prog_name="apm")
