"""A program that tells of queries in lines of JSON: `python query_program.py [KEY=VALUE …]`.

`latency_ms` of each, `per_line` queries a line, `load_s` before the first, `stop_after` lines, then exit with
`code`; `fail_every` n-th line; `silent_after` lines; `child=FILE` starts a process that writes its number
there; `stubborn=1` does not end when it is asked to; `args=FILE` writes the arguments there.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path


def main(arguments: list[str]) -> int:
    given = dict(argument.partition("=")[::2] for argument in arguments)
    latency_ms = float(given.get("latency_ms", 2))
    if "stubborn" in given:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "args" in given:
        Path(given["args"]).write_text(json.dumps(given), encoding="utf-8")
    if "child" in given:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(given["child"]).write_text(str(child.pid), encoding="utf-8")
    print("loading the model", flush=True)
    time.sleep(float(given.get("load_s", 0)))
    lines = 0
    while "stop_after" not in given or lines < int(given["stop_after"]):
        if "silent_after" in given and lines >= int(given["silent_after"]):
            time.sleep(600)
        time.sleep(latency_ms / 1e3)
        lines += 1
        told: dict[str, object] = {"latency_ms": latency_ms}
        if "per_line" in given:
            told["queries"] = int(given["per_line"])
        if "fail_every" in given and lines % int(given["fail_every"]) == 0:
            told = {"error": "out of memory"}
        print(json.dumps(told), flush=True)
    print("that was all", file=sys.stderr)
    return int(given.get("code", 0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
