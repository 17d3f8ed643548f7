#!/bin/sh
# A hook of mmdebstrap's, before the kernel is installed: what its initial image holds. usage: debian-initramfs.sh TREE
#
# Debian's default holds the drivers of every disk there is. A machine whose disk is known lists them; the image is then a fraction of
# it, which an emulated processor unpacks in a fraction of the time.
set -eu
mkdir -p "$1/etc/initramfs-tools/conf.d"
echo 'MODULES=list' > "$1/etc/initramfs-tools/conf.d/driver-policy"
echo 'virtio_blk' > "$1/etc/initramfs-tools/modules"
