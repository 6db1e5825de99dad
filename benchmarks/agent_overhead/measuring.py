"""One measurement, in a process of its own. Prints its figures as JSON."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
import time
from pathlib import Path


def importing() -> dict[str, float]:
    """How long the agent takes to load: everything that tuning real hardware needs."""
    began = time.perf_counter()
    _load()
    return {"import_s": time.perf_counter() - began}


def _load() -> None:
    import polythrottle_agent.devices
    import polythrottle_agent.executor
    import polythrottle_agent.hardware
    import polythrottle_agent.nvidia_gpu
    import polythrottle_agent.privileged.client  # noqa: F401


def sampling(root: Path, window_s: float) -> dict[str, float]:
    """The processor time of meter and witness over one window, and the memory of the whole process."""
    _load()
    if importlib.util.find_spec("pynvml") is not None:
        importlib.import_module("pynvml")  # as it is on a host with an NVIDIA GPU
    lay_out(root)
    from polythrottle_agent.discovery import discover

    found = discover(root)
    (meter,) = found.meters
    found.witness.begin()
    meter.begin()
    time.sleep(0.2)
    clocks = {
        thread.name: time.pthread_getcpuclockid(thread.ident)
        for thread in threading.enumerate()
        if thread.name.startswith("sampler") and thread.ident is not None
    }
    meter_clock = clocks[f"sampler {meter.name}"]
    witness_clock = clocks["sampler throttling"]
    wall, used, looked = (
        time.perf_counter(),
        time.clock_gettime(meter_clock),
        time.clock_gettime(witness_clock),
    )
    time.sleep(window_s)
    wall = time.perf_counter() - wall
    used, looked = time.clock_gettime(meter_clock) - used, time.clock_gettime(witness_clock) - looked
    resident_kb = _status_kb("VmRSS")
    sampler = meter._sampler  # type: ignore[attr-defined]  # what it holds is what is measured here
    readings = len(sampler._samples.values)
    found.witness.end()
    meter.end()
    return {
        "sampler_share": used / wall,
        "witness_share": looked / wall,
        "rss_mb": resident_kb / 1024.0,
        "readings_per_s": readings / (wall + 0.2),
    }


def _status_kb(name: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return float(value.split()[0])
    raise SystemExit(f"/proc/self/status has no {name}")


def lay_out(root: Path) -> None:
    """An AGX Orin's files, as far as meter and witness read them."""
    files: dict[str, object] = {
        "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0",
        "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    }
    chips = {
        "1-0040": (("VDD_GPU_SOC", 20000, 400), ("VDD_CPU_CV", 20000, 200), ("VIN_SYS_5V0", 5000, 1000)),
        "1-0041": (("", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 300)),
    }
    for number, (chip, rails) in enumerate(chips.items()):
        base = f"sys/bus/i2c/drivers/ina3221/{chip}/hwmon/hwmon{number}"
        files[f"{base}/update_interval"] = 430
        for channel, (label, millivolts, milliamps) in enumerate(rails, start=1):
            files[f"{base}/in{channel}_label"] = label
            files[f"{base}/in{channel}_input"] = millivolts
            files[f"{base}/curr{channel}_input"] = milliamps
    gpu = "sys/class/devfreq/17000000.gpu"
    files |= {
        f"{gpu}/device/of_node/name": "gpu\0",
        f"{gpu}/available_frequencies": "306000000 612000000 1300500000",
        f"{gpu}/min_freq": 306000000,
        f"{gpu}/max_freq": 1300500000,
        f"{gpu}/cur_freq": 612000000,
    }
    for number in range(3):
        policy = f"sys/devices/system/cpu/cpufreq/policy{4 * number}"
        cpus = " ".join(str(4 * number + i) for i in range(4))
        files |= {
            f"{policy}/{name}": value
            for name, value in {
                "related_cpus": cpus,
                "affected_cpus": cpus,
                "cpuinfo_min_freq": 115200,
                "cpuinfo_max_freq": 2201600,
                "scaling_available_frequencies": "115200 1190400 2201600",
                "scaling_min_freq": 115200,
                "scaling_max_freq": 2201600,
                "scaling_cur_freq": 1190400,
                "scaling_governor": "schedutil",
            }.items()
        }
    for number in range(9):
        zone = f"sys/class/thermal/thermal_zone{number}"
        files |= {f"{zone}/type": f"zone{number}", f"{zone}/temp": 45000}
        files |= {f"{zone}/trip_point_0_type": "passive", f"{zone}/trip_point_0_temp": 99000}
    for number in range(1, 4):
        files[f"sys/class/hwmon/hwmon9/oc{number}_event_cnt"] = 0
    files["sys/class/hwmon/hwmon9/name"] = "soctherm_oc"
    for path, value in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n", encoding="utf-8")


def main() -> None:
    what, *arguments = sys.argv[1:]
    figures = importing() if what == "import" else sampling(Path(arguments[0]), float(arguments[1]))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
