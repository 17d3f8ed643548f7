#!/bin/busybox sh
# First program of the busybox machine: loads the disk's driver and hands over to the disk.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /modules/*; do
    insmod "$module"
done
label=
for word in $(cat /proc/cmdline); do
    case $word in root=LABEL=*) label=${word#root=} ;; esac
done
# Disks come a moment after their driver.
tries=0
while ! disk=$(findfs "$label" 2> /dev/null); do
    tries=$((tries + 1))
    if [ $tries = 100 ]; then
        echo "no disk with $label"
        cat /proc/partitions
        poweroff -f
    fi
    sleep 0.1
done
mount -t ext4 "$disk" /root || poweroff -f
mount --move /dev /root/dev
mount --move /proc /root/proc
mount --move /sys /root/sys
exec switch_root /root /sbin/init
