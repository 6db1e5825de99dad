"""What the agent costs a board: its sampler's share of a core, its memory, and how long it takes to load."""
