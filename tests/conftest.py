"""Whatever runs the tests: signals mean what they usually mean."""

from __future__ import annotations

import signal

# Under nohup, and in some CI, SIGHUP is ignored, and every process that a test starts would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
