#!/bin/busybox sh
# First program of the node: mounts the read-only root with a memory overlay and hands over to init.sh, which the host shares
# beside it, so that a change there rebuilds nothing.
export PATH=/bin
fail() {
    echo "node: $1"
    poweroff -f
}
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /modules/*; do
    insmod "$module" || fail "cannot load $module"
done
mount -t erofs -o ro /dev/vda /root || fail 'no root file system'
mount -t tmpfs -o size=50% tmpfs /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/root,upperdir=/memory/upper,workdir=/memory/work overlay /new || fail 'no overlay'
mkdir -p /new/node
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 node /new/node || fail 'no shared folder'
mkdir -p /new/usr/lib/modules
mount -t erofs -o ro /dev/vdc /new/usr/lib/modules || fail 'no modules'
mount --move /dev /new/dev
mount --move /proc /new/proc
mount --move /sys /new/sys
exec switch_root /new /bin/bash /node/init.sh
