"""``python -m squib``."""

from squib.cli.entry import main

main()
