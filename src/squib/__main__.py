"""``python -m squib``."""

from squib.cli.main import main

main()
