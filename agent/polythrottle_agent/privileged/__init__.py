"""What holds the promise to put a device back: journal, keeper, and the small root helper that writes."""
