"""The emulator beside the PolyThrottle paper, and the fit that calibrated it."""
