#!/usr/bin/env bash
# A real systemd for tests: PID 1 of its own namespace, over a throw-away overlay of "/", with D-Bus, journald, logind and
# user managers. It starts in about a second.
#
#   namespace.sh start DIR [NAME:UID...]   boot; each NAME:UID is created in the overlay and gets a running user manager
#   namespace.sh exec  DIR COMMAND...      run a command inside, as root
#   namespace.sh stop  DIR                 power off, then kill; removes its cgroups
#
# In DIR, an absolute path that is the same inside, after the start:
#   run/dbus/system_bus_socket, run/user/UID/bus   the buses
#   units/, user-units/                            /etc/systemd/system and /etc/systemd/user (then daemon-reload)
#   journal/                                       /var/log/journal
# Needs root (CAP_SYS_ADMIN), overlayfs, and the Debian packages systemd, dbus and libpam-systemd.
set -euo pipefail
main() {   # one function: bash parses all of it first, so the file may change under a running instance
CMD=${1:?start|exec|stop}; D=${2:?DIR}; shift 2
ID=$(basename "$D" | tr -cd 'A-Za-z0-9._-')
CG=sdt-$ID

cg_list() {  # "fstype options path" of every cgroup mount of the host
  awk '$3=="cgroup"||$3=="cgroup2"{print $3, $4, $2}' /proc/mounts | sort -u -k3,3
}
cg_self() { # path of this process in hierarchy $1 ('' = v2)
  awk -F: -v h="$1" '(h=="" && $1=="0")||(h!="" && index(","$2",", ","h",")){print $3; exit}' /proc/self/cgroup
}

case $CMD in
start)
  if [ -e "$D/pid" ] && kill -0 "$(cat "$D/pid")" 2>/dev/null; then echo "already running" >&2; exit 1; fi
  mkdir -p "$D"/{run,units,user-units,journal,ov,root}
  rm -rf "$D"/run/* "$D/failed" "$D/pid"; printf '%s\n' "$@" > "$D/users"
  setsid --fork "$0" _outer "$D" </dev/null >"$D/console.log" 2>&1
  for i in $(seq 1 900); do       # up to 90 s
    [ -e "$D/failed" ] && { echo "start failed:" >&2; cat "$D/console.log" >&2; exit 1; }
    [ -s "$D/pid" ] || { sleep 0.05; continue; }
    # (host "systemctl" says "offline" when the host itself is not booted with systemd, so ask busctl)
    st=$(DBUS_SYSTEM_BUS_ADDRESS=unix:path=$D/run/dbus/system_bus_socket timeout 5 busctl --system get-property \
         org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager SystemState 2>/dev/null | cut -d'"' -f2 || true)
    case $st in running|degraded) break;; esac
    sleep 0.1
  done
  case ${st:-} in running|degraded) ;; *) echo "systemd did not come up ($st)"; tail -50 "$D/console.log"; "$0" stop "$D"; exit 1;; esac >&2
  ;;
_outer)   # own cgroup in every hierarchy, then new namespaces
  trap 'echo "line $LINENO: $BASH_COMMAND"; touch "$D/failed"' ERR
  while read -r fs opt path; do
    case $fs in
      cgroup2) h='';;
      cgroup) case $opt in *name=systemd*) h=name=systemd;; *) h=$(basename "$path"); h=${h%%,*};; esac;;
    esac
    case $h in cpuset|freezer|net_*|perf_event|rdma|misc|hugetlb) continue;; esac
    p=$(cg_self "$h"); [ -d "$path$p" ] || p=/
    if [ "$fs" = cgroup2 ]; then
      # v2 forbids processes in an inner node with controllers on: use a sibling under the root
      p=/; for c in $(cat "$path/cgroup.controllers"); do echo "+$c" > "$path/cgroup.subtree_control" 2>/dev/null || true; done
    fi
    mkdir -p "$path${p%/}/$CG"; echo "$path${p%/}/$CG" >> "$D/cgroups"
    echo $$ > "$path${p%/}/$CG/cgroup.procs"
  done < <(cg_list)
  ns=(--mount --pid --fork --uts --ipc --cgroup --propagation private)
  cp "$(readlink -f "$0")" "$D/.self"; chmod +x "$D/.self"
  unshare "${ns[@]}" "$D/.self" _inner "$D" &
  up=$!
  # host-side pid of the namespace's PID 1
  for i in $(seq 1 100); do c=$(cat /proc/$up/task/$up/children 2>/dev/null || true); [ -n "$c" ] && break; sleep 0.02; done
  echo "${c%% *}" > "$D/pid"
  wait $up || true
  ;;
_inner)   # PID 1 of the new namespace
  trap 'echo "line $LINENO: $BASH_COMMAND"; touch "$D/failed"' ERR
  R=$D/root
  mount -t tmpfs -o mode=755,size=2g sdt "$D/ov"; mkdir "$D"/ov/{u,w}
  mount -t overlay -o "lowerdir=/,upperdir=$D/ov/u,workdir=$D/ov/w" overlay "$R"
  mount -t proc proc "$R/proc"; mount -o bind,ro "$R/proc/sys" "$R/proc/sys"
  mount -t sysfs -o ro sysfs "$R/sys"
  mount -t tmpfs -o mode=755 tmpfs "$R/dev"; mkdir -p "$R"/dev/{pts,shm,mqueue}
  for n in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 console:1:3; do
    IFS=: read -r a b c <<<"$n"; mknod -m 666 "$R/dev/$a" c "$b" "$c"; done
  mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$R/dev/pts"; ln -s pts/ptmx "$R/dev/ptmx"
  ln -s /proc/self/fd "$R/dev/fd"; for i in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${i%%:*}" "$R/dev/${i##*:}"; done
  mount -t tmpfs -o mode=1777 tmpfs "$R/dev/shm"
  mount -t tmpfs -o mode=1777 tmpfs "$R/tmp"
  mkdir -p "$R$D"; mount --bind "$D" "$R$D"            # same path in and out
  mount --bind "$D/run" "$R/run"
  mkdir "$R/run/log"; mount -t tmpfs tmpfs "$R/run/log"    # from a disk journald does not remove what it has flushed
  # cgroup file systems, rooted at our sub-cgroup because of the cgroup namespace
  if [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; then
    mount -t cgroup2 cgroup2 "$R/sys/fs/cgroup"
  else
    mount -t tmpfs -o mode=755 tmpfs "$R/sys/fs/cgroup"
    mkdir "$R"/sys/fs/cgroup/{unified,systemd}
    mount -t cgroup2 cgroup2 "$R/sys/fs/cgroup/unified"
    mount -t cgroup -o none,name=systemd cgroup "$R/sys/fs/cgroup/systemd" || rmdir "$R/sys/fs/cgroup/systemd"
    for c in memory pids blkio devices; do
      grep -qw "$c" /proc/self/cgroup || continue
      mkdir "$R/sys/fs/cgroup/$c"; mount -t cgroup -o "$c" cgroup "$R/sys/fs/cgroup/$c" || rmdir "$R/sys/fs/cgroup/$c"
    done
    # systemd assumes that v1 cpu and cpuacct are one hierarchy; where they are two, only cpuacct is shown
    if mkdir "$R/sys/fs/cgroup/cpu,cpuacct" && { mount -t cgroup -o cpu,cpuacct cgroup "$R/sys/fs/cgroup/cpu,cpuacct" ||
         mount -t cgroup -o cpuacct cgroup "$R/sys/fs/cgroup/cpu,cpuacct"; } 2>/dev/null; then
      ln -s cpu,cpuacct "$R/sys/fs/cgroup/cpu"; ln -s cpu,cpuacct "$R/sys/fs/cgroup/cpuacct"; fi
    for c in cpuset freezer net_cls,net_prio perf_event hugetlb rdma misc; do   # keep systemd from mounting these v1 hierarchies
      mkdir "$R/sys/fs/cgroup/$c"; mount -t tmpfs -o size=4k tmpfs "$R/sys/fs/cgroup/$c"; done
  fi
  # a minimal boot: no distribution units but bus, journal, logind
  rm -rf "$R"/{usr/lib,lib,etc}/systemd/system/{sysinit,sockets,timers,local-fs,basic,multi-user,graphical,paths}.target.wants \
         "$R"/etc/systemd/{system,user}/*
  find "$R"/usr/lib/systemd/user/*.wants -type l ! -name dbus.socket -delete
  mkdir -p "$R"/etc/systemd/{system,user} "$R"/var/log/journal
  mount --bind "$D/units" "$R/etc/systemd/system"
  mount --bind "$D/user-units" "$R/etc/systemd/user"
  chgrp -R systemd-journal "$D/journal" 2>/dev/null && find "$D/journal" -type d -exec chmod 2755 {} + || true  # as tmpfiles.d does
  mount --bind "$D/journal" "$R/var/log/journal"
  grep -q '^passwd:.*systemd' "$R/etc/nsswitch.conf" || sed -i -E 's/^((passwd|group|shadow):.*)$/\1 systemd/' "$R/etc/nsswitch.conf"   # DynamicUser names
  tr -d - </proc/sys/kernel/random/uuid > "$R/etc/machine-id"; chmod 444 "$R/etc/machine-id"
  echo "sdt-$ID" > "$R/etc/hostname"; : > "$R/etc/fstab"
  while read -r u; do [ -z "$u" ] || chroot "$R" useradd -m -s /bin/bash -u "${u##*:}" "${u%%:*}"; done < "$D/users"
  mkdir -p "$R/var/lib/systemd/linger"   # else logind stops user@UID when the first real session ends
  while read -r u; do [ -z "$u" ] || : > "$R/var/lib/systemd/linger/${u%%:*}"; done < "$D/users"
  U=$R/run/systemd/system; mkdir -p "$U" "$R"/run/systemd/{system.conf.d,journald.conf.d} "$R"/run/{dbus,lock,user}
  cat > "$U/sdt.target" <<X
[Unit]
Requires=dbus.socket systemd-journald.socket
Wants=dbus.service systemd-journald.service systemd-journal-flush.service systemd-logind.service
Wants=$(while read -r u; do [ -n "$u" ] && printf 'user@%s.service ' "${u##*:}"; done < "$D/users")
After=basic.target dbus.service systemd-journald.service
X
  mkdir -p "$U/user-runtime-dir@.service.d" "$U/user@.service.d" "$U/systemd-logind.service.d" "$U/systemd-journald.service.d"
  # plain directory instead of a tmpfs mount, so that it is visible outside the mount namespace
  printf '[Service]\nExecStart=\nExecStart=/bin/sh -c "install -d -m 0700 -o %%i -g $(id -g %%i) /run/user/%%i"\nExecStop=\n' > "$U/user-runtime-dir@.service.d/sdt.conf"
  printf '[Service]\nEnvironment=XDG_RUNTIME_DIR=/run/user/%%i\n' > "$U/user@.service.d/sdt.conf"
  printf '[Unit]\nConditionPathExists=\n' > "$U/systemd-logind.service.d/sdt.conf"
  printf '[Manager]\nDefaultCPUAccounting=yes\nDefaultMemoryAccounting=yes\nDefaultTasksAccounting=yes\nDefaultIOAccounting=yes\nDefaultTimeoutStopSec=5s\nLogLevel=info\nLogTarget=journal-or-kmsg\n' > "$R/run/systemd/system.conf.d/sdt.conf"
  printf '[Journal]\nStorage=persistent\nReadKMsg=no\nAudit=no\nRateLimitIntervalSec=0\nForwardToSyslog=no\nForwardToWall=no\nSystemMaxUse=200M\n' > "$R/run/systemd/journald.conf.d/sdt.conf"
  cd "$R"; mkdir -p "$R/ov-old"; pivot_root . ov-old
  umount -l /ov-old
  mount --make-rshared /      # LoadCredential= and BindPaths= need propagation; the host is not a peer
  exec env -i container=sdt PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=sdt.target --show-status=no
  ;;
exec)
  exec nsenter -t "$(cat "$D/pid")" --mount --pid --uts --ipc --cgroup -- "$@"
  ;;
stop)
  p=$(cat "$D/pid" 2>/dev/null || true)
  if [ -n "$p" ] && kill -0 "$p" 2>/dev/null; then
    kill -s RTMIN+4 "$p" || true                      # poweroff.target
    for i in $(seq 1 100); do kill -0 "$p" 2>/dev/null || break; sleep 0.1; done
    kill -9 "$p" 2>/dev/null || true                   # the kernel then kills the whole pid namespace
    for i in $(seq 1 50); do kill -0 "$p" 2>/dev/null || break; sleep 0.1; done
  fi
  rm -f "$D/pid"
  if [ -f "$D/cgroups" ]; then
    for i in 1 2 3 4 5 6 7 8 9 10; do left=0   # exiting processes may hold them for a moment
      while read -r c; do [ -d "$c" ] && find "$c" -depth -type d -exec rmdir {} \; 2>/dev/null; if [ -d "$c" ]; then left=1; fi; done < "$D/cgroups"
      [ $left = 0 ] && break; sleep 0.2; done
    rm -f "$D/cgroups"
  fi
  ;;
esac
}
main "$@"; exit $?
