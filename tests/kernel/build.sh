#!/usr/bin/env bash
# Builds what the kernel tests boot, from Debian packages, into a cache: kernel, modules, ACPI table, initramfs and
# a root file system with systemd, Python and this checkout of polythrottle. Prints the folder with the results.
#
#   build.sh CACHE
#   build.sh --packages    print the Debian packages that it needs
#
# Exits with 77, and a sentence on stderr, where something that it needs cannot be had here.
set -Eeuo pipefail

packages=(qemu-system-x86 acpica-tools busybox-static i2c-tools cpio zstd kmod gcc make xz-utils mmdebstrap e2fsprogs
  linux-headers-amd64 linux-source-6.1)
if [ "${1-}" = --packages ]; then
  echo "${packages[*]}"
  exit
fi

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
python=${PYTHON:-python3}
mkdir -p "$1"
cache=$(cd "$1" && pwd)
log=$cache/build.log
suite=bookworm
base_options=(--variant=essential
  --include=systemd,systemd-sysv,dbus,python3-venv,kmod,procps,util-linux,passwd
  --dpkgopt=force-unsafe-io
  --dpkgopt='path-exclude=/usr/share/man/*'
  --dpkgopt='path-exclude=/usr/share/doc/*'
  --dpkgopt='path-exclude=/usr/share/locale/*')
in_guest=/opt/polythrottle
PATH=$PATH:/sbin:/usr/sbin

skip() { echo "$*" >&2; exit 77; }
step() { echo "== $SECONDS s: $*" >>"$log"; }
fail() { echo "building the kernel tests failed; the end of $log:" >&2; tail -20 "$log" >&2; exit 1; }

[ "$(id -u)" = 0 ] || skip "the root file system can only be made by root"
for tool in qemu-system-x86_64 iasl busybox i2cset cpio zstd depmod gcc make xz mmdebstrap mke2fs apt-get dpkg-deb; do
  command -v "$tool" >/dev/null || skip "$tool is missing: apt-get install ${packages[*]}"
done
release=$(ls /usr/src | sed -n 's/^linux-headers-\([0-9].*-amd64\)$/\1/p' | sort -V | tail -1)
[ -n "$release" ] || skip "no kernel headers: apt-get install linux-headers-amd64"
source=$(ls /usr/src/linux-source-*.tar.xz 2>/dev/null | sort -V | tail -1)
[ -n "$source" ] || skip "no kernel source: apt-get install linux-source-6.1"
: >"$log"
trap fail ERR

kernel=$cache/kernel-$release
base=$cache/base-$suite-$(echo "${base_options[@]}" | sha256sum | cut -c1-8).tar
wheels=$cache/wheels
root=$cache/root

# Debian with systemd as it comes.
make_base() {
  [ ! -e "$base" ] || return 0
  rm -f "$cache"/base-*
  mmdebstrap --quiet --format=tar "${base_options[@]}" "$suite" "$base.partial" >>"$log" 2>&1 ||
    { tail -3 "$log" >&2; skip "a Debian root file system cannot be made here"; }
  mv "$base.partial" "$base"
  step "root file system made"
}

# The kernel, unmodified, and the one driver that Debian does not build: ina3221, from Debian's own source.
make_kernel() {
  [ ! -e "$kernel/done" ] || return 0
  rm -rf "$cache"/kernel-* && mkdir -p "$kernel/download" "$kernel/ina3221"
  (cd "$kernel/download" && apt-get download "linux-image-$release" >>"$log" 2>&1) ||
    skip "the package linux-image-$release cannot be downloaded: apt-get update"
  dpkg-deb -x "$kernel"/download/*.deb "$kernel/image"
  local tree
  tree=$(basename "$source" .tar.xz)
  # Of these two files the archive holds one of each; without --occurrence it would be read to its end.
  tar -xJf "$source" -C "$kernel" --occurrence=1 "$tree/scripts/extract-vmlinux" "$tree/drivers/hwmon/ina3221.c"
  # Uncompressed, since decompressing takes seconds without KVM.
  bash "$kernel/$tree/scripts/extract-vmlinux" "$kernel/image/boot/vmlinuz-$release" >"$kernel/vmlinux"
  cp "$kernel/$tree/drivers/hwmon/ina3221.c" "$kernel/ina3221/"
  echo 'obj-m := ina3221.o' >"$kernel/ina3221/Makefile"
  make -s -C "/usr/src/linux-headers-$release" M="$kernel/ina3221" modules >>"$log" 2>&1
  depmod -b "$kernel/image" "$release"
  rm -rf "${kernel:?}/$tree" "$kernel/download"
  touch "$kernel/done"
  step "kernel $release made"
}

make_initramfs() {
  iasl -p "$cache/pstates" "$here/pstates.asl" >>"$log" 2>&1
  local tree=$cache/initramfs
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
  step "initramfs made"
}

# What a user installs, for the guest's Python: this checkout, and what it needs to tune without torch.
make_wheels() {
  rm -rf "$cache/wheel"
  # PIP_ARGS holds several words.
  "$python" -m pip wheel ${PIP_ARGS-} -q --no-deps -w "$cache/wheel" "$repository" >>"$log" 2>&1
  local wanted
  wanted=$(cat "$repository/pyproject.toml" "$repository/constraints.txt" | sha256sum | cut -c1-16)
  [ ! -e "$wheels/.for-$wanted" ] || return 0
  rm -rf "$wheels"
  "$python" -m pip download ${PIP_ARGS-} -q -d "$wheels" --python-version 3.11 --implementation cp \
    --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 --only-binary :all: \
    -c "$repository/constraints.txt" "$cache"/wheel/*.whl sqlmodel alembic >>"$log" 2>&1
  rm "$wheels"/polythrottle-*.whl
  touch "$wheels/.for-$wanted"
  step "wheels made"
}

guest() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 chroot "$root" "$@" >>"$log" 2>&1; }

make_disk() {
  rm -rf "$root" && mkdir -p "$root"
  tar -xf "$base" -C "$root" --exclude ./dev/'*'
  mkdir "$root/wheels"
  cp "$wheels"/*.whl "$cache"/wheel/*.whl "$root/wheels/"
  guest python3 -m venv "$in_guest"
  guest "$in_guest/bin/pip" install -q --no-index --find-links /wheels polythrottle sqlmodel alembic
  rm -r "$root/wheels"
  ln -s "$in_guest/bin/polythrottle" "$root/usr/local/bin/polythrottle"

  mkdir -p "$root/opt/checks" "$root/etc/systemd/system/multi-user.target.wants"
  cp "$here"/guest/*.py "$root/opt/checks/"
  install -m 755 "$here/guest/meter.sh" "$here/guest/serve.py" "$root/opt/checks/"
  echo 'tuner:x:1000:' >>"$root/etc/group"
  echo 'tuner:x:1000:1000::/home/tuner:/bin/sh' >>"$root/etc/passwd"
  install -d -o 1000 -g 1000 "$root/home/tuner"
  for unit in checks.service last-look.service; do
    cp "$here/guest/$unit" "$root/etc/systemd/system/"
    ln -s "../$unit" "$root/etc/systemd/system/multi-user.target.wants/$unit"
  done
  # Everything that costs boot time and is not tested is left out.
  for unit in systemd-udevd.service systemd-udev-trigger.service systemd-timesyncd.service getty.target \
    systemd-logind.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    fstrim.timer; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
  done
  echo kernel-test >"$root/etc/hostname"
  rm -f "$cache/disk.ext4"
  mke2fs -q -t ext4 -d "$root" "$cache/disk.ext4" 900M >>"$log" 2>&1
  step "disk made"
}

make_base &
base_job=$!
make_kernel
make_initramfs
make_wheels
trap - ERR
wait "$base_job" || exit  # with its own words and its own code
trap fail ERR
make_disk
ln -sfn "$kernel/vmlinux" "$cache/vmlinux"
echo "$cache"
