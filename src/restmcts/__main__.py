"""`python -m restmcts` is `restmcts`."""

from restmcts.cli import main

main()
