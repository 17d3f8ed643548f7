#!/bin/bash
# What `cargo xtask demo machine` runs in the node: a machine pod from its first boot to a login over SSH.
# usage: demo-machine.sh MANIFEST
set -euo pipefail
work=$(mktemp -d)
log=$work/console

say() {
    printf '\n\033[1m# %s\033[0m\n' "$*"
}

# Shows a command and runs it.
show() {
    printf '\033[1m$ %s\033[0m\n' "$*"
    "$@"
}

# A command that goes on meanwhile must not outlive this.
trap 'kill %1 2> /dev/null && wait %1 || true' EXIT

say 'A key, for the machine to let us in'
show ssh-keygen -q -t ed25519 -N '' -C demo -f "$work/key"
sed "s|#podvisor.io/ssh-keys: .*|podvisor.io/ssh-keys: $(< "$work/key.pub")|" "$1" > "$work/machine.yaml"

say 'A pod that is a machine: its console is what the pod prints'
printf '\033[1m$ podvisor run --rm machine.yaml\033[0m\n'
podvisor run --rm "$work/machine.yaml" > "$log" 2>&1 < /dev/null &
tail --follow --lines=+1 --pid=$! "$log" 2> /dev/null &
until grep -q 'SSH HOST KEY FINGERPRINTS' "$log"; do
    kill -0 %1 2> /dev/null || { wait %1; exit; }
    sleep 0.5
done

say 'A command in it, without SSH: our agent came in with cloud-init'
show podvisor exec vm -- sh -c 'uname -sr; systemctl is-system-running; ip -brief address; cat /sys/class/dmi/id/product_serial'

say 'SSH through a forwarded port: a connection inside the pod'"'"'s network namespace, as kubectl port-forward makes it'
namespace=$(ip netns list | awk '/^cni-/ {print $1; exit}')
show ip netns exec "$namespace" ssh -i "$work/key" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
    debian@127.0.0.1 'echo "logged in as $(id -un) on $(hostname): $(head -n 1 /etc/motd)"'

say 'The pod is deleted: its power button is pressed, and Debian shuts down by itself'
kill %1
wait %1 || code=$?
echo "podvisor run: exit code ${code:-0} (143: ended by the signal that we sent)"
trap - EXIT
[ "${code:-0}" = 143 ]
