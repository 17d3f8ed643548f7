#!/bin/sh
# A hook of mmdebstrap's, when all is installed: makes a machine of the tree. usage: debian-machine.sh TREE
#
# GRUB is put where grub-install puts it, and its menu is what grub-mkconfig makes of the tree. Neither can look at a disk that does not
# exist yet: grub-probe answers for the one that src/images/machine/disk.rs makes (first partition of a GPT, ext4).
set -eu
tree=$1
# The root file system's; disk.rs reads it from the tree.
uuid=5d1b3c5e-7f0a-4f5b-9a53-0d6f1f3a4b13

in_tree() {
    chroot "$tree" "$@"
}

write_boot_loader() {
    modules=$tree/usr/lib/grub/i386-pc
    mkdir -p "$tree/boot/grub/i386-pc" "$tree/dev/disk/by-uuid"
    cp "$modules"/*.mod "$modules"/*.lst "$modules/boot.img" "$tree/boot/grub/i386-pc/"
    in_tree grub-mkimage --format i386-pc --prefix '(,gpt1)/boot/grub' \
        --output /boot/grub/i386-pc/core.img biosdisk part_gpt ext2
    in_tree grub-editenv /boot/grub/grubenv create
    cat > "$tree/etc/default/grub" << END
GRUB_DEFAULT=0
GRUB_TIMEOUT=0
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX_DEFAULT="quiet"
GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0,115200"
GRUB_TERMINAL="serial"
GRUB_DISABLE_OS_PROBER=true
END
    mv "$tree/usr/sbin/grub-probe" "$tree/usr/sbin/grub-probe.real"
    cat > "$tree/usr/sbin/grub-probe" << END
#!/bin/sh
for word; do
    case \$word in
    --target=device) echo /dev/vda1 ;;
    --target=fs_uuid) echo $uuid ;;
    --target=fs) echo ext2 ;;
    --target=partmap) echo gpt ;;
    esac
done
END
    chmod 755 "$tree/usr/sbin/grub-probe"
    # grub-mkconfig names the root file system by its UUID only where the machine has it.
    touch "$tree/dev/disk/by-uuid/$uuid"
    in_tree grub-mkconfig --output /boot/grub/grub.cfg
    rm -r "$tree/dev/disk"
    mv "$tree/usr/sbin/grub-probe.real" "$tree/usr/sbin/grub-probe"
    echo "$uuid" > "$tree/boot/grub/root-uuid"
}

configure() {
    echo 'datasource_list: [NoCloud]' > "$tree/etc/cloud/cloud.cfg.d/90-datasource.cfg"
    echo debian > "$tree/etc/hostname"
    : > "$tree/etc/fstab"
    # systemd gives a device and a service 90 seconds, which is not much on an emulated processor that others use as well.
    mkdir -p "$tree/etc/systemd/system.conf.d"
    printf '[Manager]\nDefaultTimeoutStartSec=15min\nDefaultDeviceTimeoutSec=15min\n' \
        > "$tree/etc/systemd/system.conf.d/patience.conf"
    # Work for a machine that lives for months, at every boot of one that lives for minutes.
    in_tree systemctl --quiet disable apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
        e2scrub_reap.service grub-common.service
}

# Every machine has its own, made at its first boot.
remove_identity() {
    rm -f "$tree"/etc/ssh/ssh_host_*
    : > "$tree/etc/machine-id"
    rm -f "$tree/var/lib/dbus/machine-id"
}

slim() {
    rm -rf "$tree/usr/share/i18n" "$tree/var/lib/apt/lists" "$tree/usr/share/grub"
    rm -f "$tree"/var/cache/apt/*.bin "$tree"/var/log/*.log "$tree/etc/resolv.conf"
}

# What systemd does at the first boot after an update of /usr, done here.
settle() {
    in_tree ldconfig
    in_tree journalctl --quiet --update-catalog
    touch "$tree/etc/.updated" "$tree/var/.updated"
}

write_boot_loader
configure
remove_identity
slim
settle
