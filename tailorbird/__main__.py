"""Entry point of `python -m tailorbird`."""

from tailorbird.cli.app import main

main()
