"""`python -m stanchion` is `stanchion`."""

from stanchion.cli import main

main()
