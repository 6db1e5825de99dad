"""How long the guard takes from a breach to restored clocks: real processes on an emulated board's files."""
