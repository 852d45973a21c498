#!/usr/bin/env bash
# Everything from a fresh Debian 12 machine, as root: ./build.sh run | test [SUITE] | image | bench [NAME] | clean
set -euo pipefail
cd "$(dirname "$0")"

readonly VENV=.venv
readonly PACKAGES=(
  qemu-system-x86 ovmf swtpm swtpm-tools mmdebstrap debian-archive-keyring tpm2-tools libtss2-dev libtss2-tcti-cmd0
  libtss2-tcti-swtpm0 libvirt-daemon-driver-qemu libvirt-daemon libvirt-clients chromium shellcheck python3-venv
  python3-dev gcc pkg-config openssl util-linux git ca-certificates
)
START=$SECONDS

usage() {
  cat <<'TEXT'
usage: ./build.sh run             build what is missing, boot manager + guest, show a guest using its TPM
       ./build.sh test [SUITE]    core proofs; SUITE: unit | integration | system | full (everything, keeps a report)
       ./build.sh image [ARGS]    build the appliance and the guest image (ARGS for `python3 -m image.builder`)
       ./build.sh bench [NAME]    benchmarks (command, compare, follow, hierarchy, migrate, relocate; NAME --help: its options);
                                  JSON and HTML under build/bench
       ./build.sh clean           remove build/ and .venv of this checkout

environment:
  VTPM_ACCEL            QEMU accelerator (default: tcg, or kvm where a probe boot proves it)
  VTPM_DEBIAN_MIRROR    Debian mirror for the image (default: the one apt uses on this machine)
TEXT
}

say() { printf '[%3d s] %s\n' "$((SECONDS - START))" "$*"; }

# step NAME REMEDY COMMAND...: run it, keep its output in a log, name all three if it fails
step() {
  local name=$1 remedy=$2 log
  shift 2
  mkdir -p build/log
  log=build/log/${name// /-}.log
  say "$name"
  if ! "$@" >"$log" 2>&1 </dev/null; then
    printf 'build.sh: step "%s" failed; the end of its log %s:\n' "$name" "$log" >&2
    tail -n 15 "$log" >&2
    printf 'remedy: %s\n' "$remedy" >&2
    exit 1
  fi
}

missing_packages() {
  local package
  for package in "${PACKAGES[@]}"; do
    dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || printf '%s\n' "$package"
  done
}

install_packages() {
  local missing
  mapfile -t missing < <(missing_packages)
  ((${#missing[@]})) || return 0
  if ((EUID != 0)); then
    printf 'build.sh: these packages are missing: %s\nremedy: run build.sh as root, or install them\n' "${missing[*]}" >&2
    exit 1
  fi
  step "package lists" "check the machine's apt sources" apt-get update -q
  step "install ${#missing[@]} packages" "apt-get install ${missing[*]}" \
    env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
}

make_venv() {
  local stamp=$VENV/stamp
  cmp -s pyproject.toml "$stamp" && return 0
  step "python environment" "apt-get install python3-venv; rm -rf $VENV" /usr/bin/python3 -m venv "$VENV"
  step "python packages" "check pip's index; the log names the package" \
    "$VENV/bin/pip" install -q --disable-pip-version-check -e '.[manager,host,test]'
  cp pyproject.toml "$stamp"
}

take_lock() {
  mkdir -p build
  exec 9>build/.lock
  flock -n 9 || { say "another build.sh runs in this checkout; waiting for it"; flock 9; }
}

setup() {
  take_lock
  install_packages
  make_venv
}

build_images() {
  say "images"
  /usr/bin/python3 -m image.builder "${@:-all}"
}

run_tests() {
  local suite=${1:-core}
  shift || true
  local command=(-m pytest -p no:cacheprovider)
  case $suite in
    core) command=(-m tests.side_by_side -m "not full") ;;
    unit) command+=(tests/test_layers.py tests/test_lint.py tests/unit) ;;
    integration) command+=(tests/integration) ;;
    system) command+=(-m "not full" tests/system) ;;
    full)
      mkdir -p build/report
      command=(-m tests.side_by_side --report build/report)
      ;;
    *) usage >&2; exit 2 ;;
  esac
  case $suite in core | system | full) build_images all ;; esac
  say "tests: $suite"
  if [[ $suite == full ]]; then
    "$VENV/bin/python" "${command[@]}" "$@" 2>&1 | tee build/report/report.txt
  else
    "$VENV/bin/python" "${command[@]}" "$@"
  fi
}

main() {
  local verb=${1:-help}
  shift || true
  case $verb in
    run) setup; build_images all; exec "$VENV/bin/python" -m image.host run "$@" 9>&- ;;
    test) setup; run_tests "$@" ;;
    image) setup; build_images "$@" ;;
    bench) setup; [[ ${1:-} == hierarchy || ${1:-} == migrate ]] || build_images all; exec "$VENV/bin/python" -m tests.bench "$@" ;;
    clean) take_lock; rm -rf build "$VENV" ;;
    help | -h | --help) usage ;;
    *) usage >&2; exit 2 ;;
  esac
}

main "$@"
