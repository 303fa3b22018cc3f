#!/bin/sh
# Runs the BPF tests on other kernels: Debian's cloud kernels, unpacked, in QEMU without KVM, with an initramfs that holds the test
# binary, its libraries and busybox. Prints each kernel's doctest summary; exits 1 when a test failed, 77 when it cannot run here.
#   tests/bpf/qemu.sh [--binary FILE] [--work DIR] [VERSION…]      default: build/dev/tests/nodemesh_bpf_tests, build/qemu, 6.1 6.12
set -eu
cd "$(dirname "$0")/../.."
binary=build/dev/tests/nodemesh_bpf_tests
work=build/qemu
while [ $# -gt 0 ]; do
  case $1 in
    --binary) binary=$2; shift 2 ;;
    --work) work=$2; shift 2 ;;
    -*) echo "usage: $0 [--binary FILE] [--work DIR] [VERSION…]" >&2; exit 2 ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || set -- 6.1 6.12

skip() { echo "SKIPPED: $1" >&2; exit 77; }
for tool in qemu-system-x86_64 busybox cpio xz apt-get dpkg-deb ip dash; do
  command -v "$tool" > /dev/null || skip "$tool is not installed (apt-get install qemu-system-x86 busybox-static cpio xz-utils iproute2)"
done
[ "$(uname -m)" = x86_64 ] || skip "only x86_64 kernels are fetched"
[ -x "$binary" ] || { echo "$binary: not built; build the target nodemesh_bpf_tests" >&2; exit 2; }
binary=$(realpath "$binary")
mkdir -p "$work"
work=$(realpath "$work")

# Unpacks the newest cloud kernel of the version into $work/<version>, once.
fetch() {
  [ -e "$work/$1/boot" ] && return
  package=$(apt-cache search --names-only "^linux-image-$(echo "$1" | sed 's/\./\\./')\.[0-9][^ ]*-cloud-amd64\$" |
    cut -d' ' -f1 | sort -V | tail -1)
  [ -n "$package" ] || skip "apt knows no linux-image-$1…-cloud-amd64; run apt-get update"
  echo "fetching $package"
  rm -rf "$work/$1.new"
  mkdir "$work/$1.new"
  (cd "$work/$1.new" && apt-get -qq download "$package" && dpkg-deb -x ./*.deb . && rm ./*.deb) ||
    skip "$package could not be downloaded"
  mv "$work/$1.new" "$work/$1"
}

# Copies a program and the libraries it loads to the same paths below $root.
install_program() {
  install -D "$1" "$root/$2"
  ldd "$1" 2> /dev/null | grep -o '/[^ ]*' | sort -u | while read -r library; do
    [ -e "$root$library" ] || install -D "$(realpath "$library")" "$root$library"
  done
}

make_initramfs() {
  root=$work/root
  rm -rf "$root"
  mkdir -p "$root/proc" "$root/sys" "$root/dev" "$root/tmp" "$root/bin" "$root/modules"
  install_program "$(command -v busybox)" bin/busybox
  for name in mount insmod poweroff; do ln -s busybox "$root/bin/$name"; done
  # busybox's own shell would run busybox's own ip, which cannot make a veth pair.
  install_program "$(realpath "$(command -v dash)")" bin/sh
  install_program "$(realpath "$(command -v ip)")" bin/ip
  install_program "$binary" nodemesh_bpf_tests
  find "$work/$1/lib/modules" "$work/$1/usr/lib/modules" -name 'veth.ko*' 2> /dev/null | while read -r module; do
    case $module in
      *.xz) xz -dc "$module" > "$root/modules/veth.ko" ;;
      *) cp "$module" "$root/modules/veth.ko" ;;
    esac
  done
  cat > "$root/init" << 'INIT'
#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
[ -e /modules/veth.ko ] && insmod /modules/veth.ko
/nodemesh_bpf_tests --no-colors=true -tce="what the programs cost*"
echo "exit status $?"
poweroff -f
INIT
  chmod +x "$root/init"
  (cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) > "$work/initramfs.gz"
}

status=0
for version in "$@"; do
  fetch "$version"
  make_initramfs "$version"
  kernel=$(ls "$work/$version"/boot/vmlinuz-*)
  echo "== ${kernel##*/vmlinuz-}"
  timeout 900 qemu-system-x86_64 -accel tcg -cpu max -smp 2 -m 768 -nographic -no-reboot -net none \
    -kernel "$kernel" -initrd "$work/initramfs.gz" -append "console=ttyS0 quiet panic=-1" < /dev/null > "$work/$version.log" 2>&1 || true
  tr -d '\r' < "$work/$version.log" | grep -E '^\[doctest\] (test cases|assertions|Status)|ERROR|^TEST CASE|^exit status' | grep -B1 -E '^\[doctest|ERROR|^exit' | grep -v '^--' || true
  if ! tr -d '\r' < "$work/$version.log" | grep -q '^exit status 0$'; then
    echo "failed on $version: see $work/$version.log"
    status=1
  fi
done
exit $status
