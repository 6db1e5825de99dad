import sys
from pathlib import Path

# Test modules are imported by path (`--import-mode=importlib`), so what they share must be findable.
sys.path.insert(0, str(Path(__file__).parent))
