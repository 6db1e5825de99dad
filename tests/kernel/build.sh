#!/usr/bin/env bash
# Builds what the kernel tests boot, from Debian packages, into a cache: kernel, modules, ACPI table, initramfs and
# a root file system with systemd, Python and this checkout of polythrottle. Prints the folder with the results.
#
#   build.sh CACHE
#
# Exits with 77, and a sentence on stderr, where something that it needs cannot be had here.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
mkdir -p "$1"
cache=$(cd "$1" && pwd)
log=$cache/build.log
suite=bookworm
packages="qemu-system-x86 acpica-tools busybox-static i2c-tools cpio zstd kmod gcc make xz-utils mmdebstrap e2fsprogs"

skip() { echo "$*" >&2; exit 77; }
step() { echo "== $*" >>"$log"; }
fail() { echo "building the kernel tests failed; the end of $log:" >&2; tail -20 "$log" >&2; exit 1; }
trap fail ERR

[ "$(id -u)" = 0 ] || skip "the root file system can only be made by root"
for tool in qemu-system-x86_64 iasl busybox i2cset cpio zstd depmod gcc make mmdebstrap mke2fs apt-get dpkg-deb; do
  PATH=$PATH:/sbin:/usr/sbin command -v "$tool" >/dev/null ||
    skip "$tool is missing: apt-get install $packages linux-headers-amd64 linux-source-6.1"
done
PATH=$PATH:/sbin:/usr/sbin
release=$(ls /usr/src | sed -n 's/^linux-headers-\([0-9].*-amd64\)$/\1/p' | sort -V | tail -1)
[ -n "$release" ] || skip "no kernel headers: apt-get install linux-headers-amd64"
source=$(ls /usr/src/linux-source-*.tar.xz 2>/dev/null | sort -V | tail -1)
[ -n "$source" ] || skip "no kernel source: apt-get install linux-source-6.1"
: >"$log"

# The kernel, unmodified, and the one driver that Debian does not build: ina3221, from Debian's own source.
kernel=$cache/kernel-$release
if [ ! -e "$kernel/done" ]; then
  step "kernel $release"
  rm -rf "$kernel" && mkdir -p "$kernel/download" "$kernel/ina3221"
  (cd "$kernel/download" && apt-get download "linux-image-$release" >>"$log" 2>&1) ||
    skip "the package linux-image-$release cannot be downloaded: apt-get update"
  dpkg-deb -x "$kernel"/download/*.deb "$kernel/image"
  tree=$(basename "$source" .tar.xz)
  tar -xJf "$source" -C "$kernel" "$tree/scripts/extract-vmlinux" "$tree/drivers/hwmon/ina3221.c"
  # Uncompressed, since decompressing takes seconds without KVM.
  bash "$kernel/$tree/scripts/extract-vmlinux" "$kernel/image/boot/vmlinuz-$release" >"$kernel/vmlinux"
  cp "$kernel/$tree/drivers/hwmon/ina3221.c" "$kernel/ina3221/"
  echo 'obj-m := ina3221.o' >"$kernel/ina3221/Makefile"
  make -s -C "/usr/src/linux-headers-$release" M="$kernel/ina3221" modules >>"$log" 2>&1
  depmod -b "$kernel/image" "$release"
  rm -rf "${kernel:?}/$tree" "$kernel/download"
  touch "$kernel/done"
fi

step "initramfs"
iasl -p "$cache/pstates" "$here/pstates.asl" >>"$log" 2>&1
tree=$cache/initramfs
rm -rf "$tree" && mkdir -p "$tree"/{bin,dev,proc,sys,newroot,usr/sbin,"lib/modules/$release/extra"}
for module in acpi-cpufreq cpufreq_ondemand cpufreq_powersave acpi_power_meter i2c-dev i2c-stub virtio_pci virtio_blk \
  crc32c_generic ext4; do
  modprobe -d "$kernel/image" -S "$release" --show-depends "$module" | awk '$1 == "insmod" { print $2 }'
done | sort -u | while read -r file; do
  install -D -m 644 "$file" "$tree/lib/modules/${file#*lib/modules/}"
done
strip --strip-debug -o "$tree/lib/modules/$release/extra/ina3221.ko" "$kernel/ina3221/ina3221.ko"
cp "$kernel/image/lib/modules/$release"/modules.{order,builtin,builtin.modinfo} "$tree/lib/modules/$release/"
depmod -b "$tree" "$release"
install "$(command -v busybox)" "$tree/bin/busybox"
install "$(command -v i2cset)" "$tree/usr/sbin/"
ldd "$(command -v i2cset)" | grep -o '/[^ ]*' | while read -r library; do install -D "$library" "$tree$library"; done
install -m 755 "$here/guest/init" "$tree/init"
(cd "$tree" && find . | cpio --quiet -o -H newc) | zstd -q -f -o "$cache/initramfs.zst"

# Debian with systemd as it comes; everything that costs boot time and is not tested is left out.
base=$cache/base-$suite.tar
if [ ! -e "$base" ]; then
  step "root file system"
  mmdebstrap --quiet --format=tar --variant=minbase --include=systemd,systemd-sysv,dbus,python3,kmod,procps,util-linux \
    "$suite" "$base.partial" >>"$log" 2>&1 || { tail -3 "$log" >&2; skip "a Debian root file system cannot be made here"; }
  mv "$base.partial" "$base"
fi

# polythrottle as pip installs it, for the guest's Python.
step "polythrottle"
python=${PYTHON:-python3}
rm -rf "$cache/wheel" "$cache/root"
"$python" -m pip wheel -q --no-deps -w "$cache/wheel" "$repository" >>"$log" 2>&1
site=$cache/site
wanted=$(sed -n '/^dependencies/,/^]/p' "$repository/pyproject.toml" | sha256sum | cut -c1-16)
if [ ! -e "$site/.for-$wanted" ]; then
  rm -rf "$site"
  "$python" -m pip install -q --target "$site" --python-version 3.11 --implementation cp \
    --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 --only-binary :all: \
    platformdirs pyyaml rich 'typer>=0.29' sqlmodel alembic >>"$log" 2>&1
  touch "$site/.for-$wanted"
fi

step "disk"
root=$cache/root
mkdir -p "$root" && tar -xf "$base" -C "$root" --exclude ./dev/'*'
mkdir -p "$root/opt/polythrottle"
cp -a "$site" "$root/opt/polythrottle/site"
"$python" -m pip install -q --no-deps --target "$root/opt/polythrottle/site" --upgrade "$cache"/wheel/*.whl >>"$log" 2>&1
echo /opt/polythrottle/site >"$root/usr/lib/python3/dist-packages/polythrottle.pth"
"$python" - "$root" <<'PYTHON'
"""The console scripts of the wheel, for the guest's Python."""
import configparser, pathlib, sys
root = pathlib.Path(sys.argv[1])
entries = configparser.ConfigParser()
entries.read(next((root / "opt/polythrottle/site").glob("polythrottle-*.dist-info")) / "entry_points.txt")
for name, target in entries["console_scripts"].items():
    module, function = target.split(":")
    script = root / "usr/local/bin" / name
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(f"#!/usr/bin/python3\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    script.chmod(0o755)
PYTHON
mkdir -p "$root/opt/checks"
cp "$here"/guest/*.py "$here/guest/helper.service" "$root/opt/checks/"
install -m 755 "$here/guest/meter.sh" "$root/opt/checks/meter.sh"
echo 'polythrottle:x:900:tuner' >>"$root/etc/group"
echo 'tuner:x:1000:' >>"$root/etc/group"
echo 'tuner:x:1000:1000::/home/tuner:/bin/sh' >>"$root/etc/passwd"
install -d -o 1000 -g 1000 "$root/home/tuner"
cp "$here/guest/checks.service" "$root/etc/systemd/system/"
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -s ../checks.service "$root/etc/systemd/system/multi-user.target.wants/checks.service"
for unit in systemd-udevd.service systemd-udev-trigger.service systemd-timesyncd.service getty.target \
  systemd-logind.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer; do
  ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
echo kernel-test >"$root/etc/hostname"
rm -f "$cache/disk.ext4"
mke2fs -q -t ext4 -d "$root" "$cache/disk.ext4" 900M >>"$log" 2>&1
ln -sfn "$kernel/vmlinux" "$cache/vmlinux"
echo "$cache"
