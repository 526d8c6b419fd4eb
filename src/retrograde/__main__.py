"""`python -m retrograde` is the command `retrograde`."""

from retrograde.cli import main

main()
