"""`python -m benchmarks.emulator [--tables DIR]`, the same as `polythrottle bench emulator`."""

from polythrottle_agent.emulation.paper_check import main

if __name__ == "__main__":
    raise SystemExit(main())
