#!/bin/sh
# install.sh ROOT KERNEL RELEASE OUT: puts a kernel's modules (from KERNEL, what its packages hold)
# and the checks into the Debian system in ROOT, and makes OUT.initrd and OUT.img of it. Runs as the
# last hook of mmdebstrap, with ROOT's own programs for what Debian does when a kernel is installed.
set -e
root=$1 kernel=$2 release=$3 out=$4
here=$(dirname "$0")

for modules in "$kernel"/usr/lib/modules/"$release" "$kernel"/lib/modules/"$release"; do
    if test -d "$modules"; then
        mkdir -p "$root/usr/lib/modules"
        cp -a "$modules" "$root/usr/lib/modules/"
    fi
done
# mkinitramfs asks the configuration what the kernel can unpack.
for config in "$kernel/boot/config-$release" "$root/usr/lib/modules/$release/config"; do
    test ! -f "$config" || cp "$config" "$root/boot/config-$release"
done
chroot "$root" depmod "$release"
echo 'LABEL=ravelin / ext4 defaults 0 1' > "$root/etc/fstab"
echo ravelin > "$root/etc/hostname"

install -D -t "$root/usr/lib/ravelin" "$here/check.sh"
install -m 644 -t "$root/usr/lib/ravelin" "$here/rules.nft"
install -m 644 -t "$root/etc/systemd/system" "$here/ravelin-check.service"
chroot "$root" systemctl enable ravelin-check.service

chroot "$root" mkinitramfs -o /initrd "$release"
mv "$root/initrd" "$out.initrd"
rm -f "$out.img"
# mmdebstrap has mounted /proc and its kin in there; behind a bind mount they do not show.
plain=$(mktemp -d)
unshare --mount sh -c 'mount --bind "$1" "$2" && mke2fs -q -t ext4 -L ravelin -d "$2" "$3" 2G' \
    sh "$root" "$plain" "$out.img"
rmdir "$plain"
chmod 644 "$out.initrd" "$out.img"
