"""When tuning the CPU stage first is right, and when a joint search wins. All of it emulated."""
