"""`python -m polythrottle` is the `polythrottle` command."""

from polythrottle.cli.main import main

main()
