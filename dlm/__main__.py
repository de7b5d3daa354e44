"""`python -m dlm` is the `dlm` command."""

from dlm.cli.app import main

if __name__ == "__main__":
    main()
