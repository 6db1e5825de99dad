"""`python -m benchmarks.optimizer`: the same as `polythrottle bench optimizer`."""

import sys

from polythrottle.cli.bench import app

app(["optimizer", *sys.argv[1:]])
