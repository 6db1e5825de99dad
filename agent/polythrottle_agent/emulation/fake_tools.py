"""Stand-ins for nvpmodel, jetson_clocks and tegrastats: shell scripts inside the mounted tree.

They print what captures from boards show and write the nodes that the real ones write. They act on the tree
that they lie in, through its control file, so only who may write that can change anything.
"""

from __future__ import annotations

from polythrottle_agent.emulation.layouts import Layout
from polythrottle_agent.emulation.nvpmodel import facts_of
from polythrottle_agent.emulation.sysfs import Entry, readable

_ROOT = 'root=$(cd "$(dirname "$0")/../.." && pwd)\n'

_QUERY = """
query() {
  id=$(sed 's/^pmode:0*\\([0-9][0-9]*\\).*/\\1/' "$root/var/lib/nvpmodel/status")
  for cap in nvpmodel_emc_cap/emc_iso_cap nvpmodel_clk_cap/emc; do
    node=/sys/kernel/$cap
    if [ -e "$root$node" ] && ! cat "$root$node" > /dev/null 2>&1; then
      echo "NVPM ERROR: Error opening $node: 13"
    fi
  done
  echo "NVPM WARN: fan mode is not set!"
  echo "NV Power Mode: $(name_of "$id")"
  echo "$id"
}
"""

_SWITCH = """
switch() {
  [ -n "$(name_of "$1")" ] || { echo "NVPM ERROR: Invalid power mode $1"; exit 1; }
  id=$(sed 's/^pmode:0*\\([0-9][0-9]*\\).*/\\1/' "$root/var/lib/nvpmodel/status")
  if [ "$(masks_of "$1")" != "$(masks_of "$id")" ]; then
    echo "NVPM WARN: Golden image context is already created"
    echo "NVPM WARN: Reboot required for changing to this power mode: $1"
    echo "NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:"
    read -r answer || answer=no
    case $answer in
      YES|yes) echo "mode $1" > "$root/.emulator/control"; echo reboot > "$root/.emulator/control"; exit 0 ;;
    esac
    echo "NVPM ERROR: optMask is 1, no request for power mode"
    exit 1
  fi
  echo "mode $1" > "$root/.emulator/control" || exit 1
}
"""

_NVPMODEL_MAIN = """
case $1 in
  -q|--query) query ;;
  -m|--mode) switch "$2" ;;
  *) echo "usage: nvpmodel -q | -m MODE"; exit 1 ;;
esac
"""

_JETSON_CLOCKS = """
if [ $# -eq 0 ]; then
  exec sh -c 'echo jetson-clocks > "$0"' "$root/.emulator/control"
fi
[ "$1" = --show ] || { echo "usage: jetson_clocks [--show]"; exit 1; }
for node in "$root"/sys/devices/system/cpu/cpu[0-9]*; do
  [ "$(cat "$node/online")" = 1 ] || continue
  policy=$node/cpufreq
  echo "${node##*/}: Online=1 Governor=$(cat "$policy/scaling_governor")" \\
    "MinFreq=$(cat "$policy/scaling_min_freq") MaxFreq=$(cat "$policy/scaling_max_freq")" \\
    "CurrentFreq=$(cat "$policy/scaling_cur_freq")"
done
gpu=$root@DEVFREQ@
echo "GPU MinFreq=$(cat "$gpu/min_freq") MaxFreq=$(cat "$gpu/max_freq") CurrentFreq=$(cat "$gpu/cur_freq")"
emc=$root/sys/kernel/debug/bpmp/debug/clk/emc
echo "EMC MinFreq=$(cat "$emc/min_rate") MaxFreq=$(cat "$emc/max_rate")" \\
  "CurrentFreq=$(cat "$emc/rate") FreqOverride=$(cat "$emc/mrq_rate_locked")"
"""

_TEGRASTATS = """
interval=1000
[ "$1" = --interval ] && interval=$2
while :; do
  gpu=$(($(cat "$root@DEVFREQ@/cur_freq") / 1000000))
  line="$(date '+%m-%d-%Y %H:%M:%S') GR3D_FREQ 0%@[$gpu]"
  for label in "$root"/sys/class/hwmon/hwmon*/in[0-9]_label; do
    [ -e "$label" ] || continue
    rail=${label%_label}
    volts=$(cat "${rail}_input")
    amps=$(cat "${rail%in[0-9]}curr${rail##*in}_input") || continue
    line="$line $(cat "$label") $((volts * amps / 1000))mW/$((volts * amps / 1000))mW"
  done
  echo "$line"
  sleep "$((interval / 1000)).$(printf %03d $((interval % 1000)))"
done
"""


def tool_entries(layout: Layout) -> dict[str, Entry]:
    """The scripts, where JetPack installs the real ones."""
    modes = facts_of(layout)["modes"]
    names = " ".join(f"{mode['id']}) echo {mode['name']} ;;" for mode in modes)
    masks = " ".join(f"{mode['id']}) echo '{mode['power_gating_masks']}' ;;" for mode in modes)
    masks = masks.replace("{'", "{").replace("': ", ": ").replace(", '", ", ")
    nvpmodel = (
        f"#!/bin/sh\n{_ROOT}name_of() {{ case $1 in {names} esac; }}\n"
        f"masks_of() {{ case $1 in {masks} esac; }}\n{_QUERY}{_SWITCH}{_NVPMODEL_MAIN}"
    )
    clocks, stats = (
        f"#!/bin/sh\n{_ROOT}{script.replace('@DEVFREQ@', layout.gpu.devfreq)}"
        for script in (_JETSON_CLOCKS, _TEGRASTATS)
    )
    return {
        "/usr/sbin/nvpmodel": readable(lambda: nvpmodel, 0o755),
        "/usr/bin/jetson_clocks": readable(lambda: clocks, 0o755),
        "/usr/bin/tegrastats": readable(lambda: stats, 0o755),
    }
