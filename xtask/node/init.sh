#!/bin/bash
# The node's PID 1: brings the machine to the point where containerd answers CRI, runs the command that the host asked for,
# reports its exit code and powers off. Everything in /node comes from `cargo xtask node` (xtask/src/node/rundir.rs).
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=linux
exec < /dev/null > /dev/console 2>&1

power_off() {
    sync
    echo o > /proc/sysrq-trigger
    sleep 60
}

fail() {
    echo "node: $1"
    tail -n 40 /node/containerd.log
    power_off
}

# Tells the console and the host what comes next.
say() {
    local uptime
    read -r uptime _ < /proc/uptime
    echo "node: $uptime $1"
    echo "at $1" >&9
}

# Guest ports of the serial bus, by the name that the host gave them.
port() {
    local name
    for name in /sys/class/virtio-ports/*/name; do
        if [[ $(< "$name") == "podvisor.$1" ]]; then
            name=${name%/name}
            echo "/dev/${name##*/}"
            return
        fi
    done
    fail "no port $1"
}

# One modprobe for all: every single call would read the whole index again.
load_modules() {
    local other=kvm_amd
    grep -qw svm /proc/cpuinfo && other=kvm_intel
    # Names that this kernel has built in are not modules; the others are loaded all the same.
    modprobe --all $(grep -v -e '^#' -e "^$other\$" /node/modules.list)
}

mount_system() {
    mkdir -p /dev/pts /dev/shm /dev/mqueue /run /tmp
    mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
    mount -t tmpfs -o nosuid,nodev tmpfs /dev/shm
    mount -t mqueue mqueue /dev/mqueue
    mount -t tmpfs -o mode=755 tmpfs /run
    mount -t tmpfs tmpfs /tmp
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mount -t securityfs securityfs /sys/kernel/security 2> /dev/null
    mount -t bpf bpf /sys/fs/bpf
    ln -sf /proc/self/fd /dev/fd
    ln -sf /proc/self/fd/0 /dev/stdin
    ln -sf /proc/self/fd/1 /dev/stdout
    ln -sf /proc/self/fd/2 /dev/stderr
    # containerd keeps its snapshots on a real file system: overlayfs does not stack on the root's overlay.
    mkdir -p /data
    mount -t ext4 /dev/vdb /data || fail 'no data disk'
    mkdir -p /data/containerd /data/podvisor /data/opt /data/tmp /var/lib/containerd /var/lib/podvisor /opt /var/tmp
    mount --bind /data/containerd /var/lib/containerd
    # Volumes of `podvisor run`: a machine's disk has gigabytes.
    mount --bind /data/podvisor /var/lib/podvisor
    mount --bind /data/opt /opt
    mount --bind /data/tmp /var/tmp
    chmod 1777 /tmp /var/tmp
    mount --make-rshared /
}

mount_shares() {
    local tag path
    while read -r tag path; do
        mkdir -p "$path"
        mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 "$tag" "$path" || fail "cannot mount $path"
    done < /node/shares
}

# Controllers can be handed down only by a group without processes of its own.
open_cgroups() {
    local pid controllers
    mkdir /sys/fs/cgroup/node
    while read -r pid; do
        echo "$pid" > /sys/fs/cgroup/node/cgroup.procs
    done < /sys/fs/cgroup/cgroup.procs 2> /dev/null
    read -r controllers < /sys/fs/cgroup/cgroup.controllers
    echo "+${controllers// / +}" > /sys/fs/cgroup/cgroup.subtree_control
}

open_network() {
    hostname node
    ip link set lo up
    sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
        net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1
    mkdir -p /etc/cni/net.d
    cp /node/cni.conflist /etc/cni/net.d/10-pods.conflist
    printf '127.0.0.1 localhost\n::1 localhost\n127.0.1.1 node\n' > /etc/hosts
    printf 'nameserver 127.0.0.1\nsearch node.test\n' > /etc/resolv.conf
}

# The release folder as an installation has it: one folder a version, links where programs are looked for.
install_release() {
    local folder version
    folder=$(echo /node-release/podvisor-*)
    [[ -d $folder ]] || return
    version=${folder##*/podvisor-}
    mkdir -p /opt/podvisor /usr/local/bin
    cp -r "$folder" "/opt/podvisor/$version"
    ln -sf "/opt/podvisor/$version/containerd-shim-podvisor-v2" "/opt/podvisor/$version/podvisor" /usr/local/bin/
}

configure_containerd() {
    mkdir -p /etc/containerd/conf.d /etc/containerd/certs.d/_default
    cp /node/hosts.toml /etc/containerd/certs.d/_default/hosts.toml
    cp /node/containerd.toml /etc/containerd/config.toml
    [[ -e /node/drop-in.toml ]] || return
    if grep -q '^imports' /node/containerd.toml; then
        cp /node/drop-in.toml /etc/containerd/conf.d/podvisor.toml
    else
        # containerd 1.7 replaces a whole plugin section by an imported one: the drop-in is merged as text.
        grep -v '^version' /node/drop-in.toml >> /etc/containerd/config.toml
    fi
}

start_containerd() {
    # The limits of Debian's containerd.service, which its shims inherit.
    (
        echo -999 > /proc/self/oom_score_adj
        ulimit -n 1048576
        exec containerd > /node/containerd.log 2>&1
    ) 9>&- &
    local tries
    for ((tries = 0; tries < 600; tries++)); do
        grep -q 'containerd successfully booted' /node/containerd.log && break
        kill -0 $! 2> /dev/null || fail 'containerd ended'
        sleep 0.2
    done
    ctr version > /dev/null || fail 'containerd does not answer'
}

control=$(port control)
exec 9<> "$control"
# What the host's pulse is for: xtask/src/node/session.rs.
cat "$(port pulse)" > /dev/null 9>&- &
say 'modules'
load_modules
say 'mounts'
mount_system
mount_shares
open_cgroups
[[ -e /dev/kvm ]] || fail 'no /dev/kvm'
/node/bin/xtask registry /images > /node/registry.log 2>&1 9>&- &
say 'network'
open_network
say 'release'
install_release
configure_containerd
say 'containerd'
start_containerd

say 'command'
echo ready >&9
# The command gets no terminal of the node and no controlling port: only its three streams.
setsid bash /node/command < "$(port stdin)" > "$(port stdout)" 2> "$(port stderr)" 9>&-
echo "exit $?" >&9
# The host answers when it has everything that the command wrote.
read -r -t 60 <&9
power_off
