"""What a search does to live traffic: trials that miss the SLO, with its rules and without. Emulated."""
