#!/bin/bash
# Builds the guest kernel and prints the folder that holds it: vmlinux (stripped ELF), bzImage, config, System.map, and the
# modules of the boot stage as modules/*.ko with modules/modules.dep (NAME.ko: NAME.ko…, what to load before).
#
# usage: build.sh [--source TREE]
#
# Without --source the kernel is Debian's kernel source package, and the result is kept under ~/.cache/podvisor/kernel-HASH,
# HASH standing for this script, fragment.config and the package's version. With --source it is the given tree, built beside the
# cache in a folder that later builds of the same tree continue.
#
# Needs: gcc make flex bison bc kmod libelf-dev libssl-dev lz4 cpio xz-utils.
set -euo pipefail

readonly package=linux-source-6.12 suite=trixie
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/podvisor
readonly fragment=$here/fragment.config
# The same input gives the same bytes.
export KBUILD_BUILD_TIMESTAMP='1970-01-01 00:00:00' KBUILD_BUILD_USER=podvisor KBUILD_BUILD_HOST=podvisor KBUILD_BUILD_VERSION=1

say() {
    echo "guest-kernel: $*" >&2
}

hash_of() {
    cat "$@" | sha256sum | cut -c 1-16
}

# Every line of the fragment must have survived kconfig: one that did not is a misspelt name or an unmet dependency.
check_config() {
    local config=$1 line name lost=0
    while IFS= read -r line; do
        case $line in
            CONFIG_*)
                grep -qxF -- "$line" "$config" && continue
                ;;
            '# CONFIG_'*' is not set')
                name=${line#\# }
                grep -q "^${name%% *}=" "$config" || continue
                ;;
            *) continue ;;
        esac
        say "fragment.config asks for \"$line\", the configured kernel has it otherwise"
        lost=1
    done < "$fragment"
    return $lost
}

# build TREE OBJECTS OUT
build() {
    local tree=$1 objects=$2 out=$3
    mkdir -p "$objects" "$out"
    say "configuring $(make -s -C "$tree" kernelversion)"
    make -s -C "$tree" O="$objects" KCONFIG_ALLCONFIG="$fragment" allnoconfig >&2
    check_config "$objects/.config" || exit 1
    say "compiling (6 minutes on two cores)"
    make -C "$tree" O="$objects" -j"$(nproc)" vmlinux bzImage modules >&2
    strip --strip-all -o "$out/vmlinux" "$objects/vmlinux"
    cp "$objects/arch/x86/boot/bzImage" "$objects/System.map" "$out/"
    cp "$objects/.config" "$out/config"
    install_modules "$tree" "$objects" "$out"
}

# install_modules TREE OBJECTS OUT
install_modules() {
    local tree=$1 objects=$2 out=$3 staged=$2/staged
    rm -rf "$staged" "$out/modules"
    make -s -C "$tree" O="$objects" INSTALL_MOD_PATH="$staged" INSTALL_MOD_STRIP=1 modules_install >&2
    mkdir "$out/modules"
    find "$staged" -name '*.ko' -exec cp -t "$out/modules" {} +
    # Without the folders that modules_install made: the boot stage has one.
    sed -E 's,(kernel|\.\.)/[^ :]*/,,g' "$staged"/lib/modules/*/modules.dep > "$out/modules/modules.dep"
}

build_tree() {
    local tree out
    tree=$(cd "$1" && pwd)
    out=$cache/kernel-tree-$(hash_of <(echo "$tree"))
    build "$tree" "$out/objects" "$out"
    echo "$out"
}

build_package() {
    local apt=$here/../xtask/debian-suite.sh version out work
    version=$("$apt" "$suite" apt-cache show "$package" | awk '$1 == "Version:" { print $2; exit }')
    out=$cache/kernel-$(hash_of "${BASH_SOURCE[0]}" "$fragment" <(echo "$version"))
    # One build serves everyone who asks meanwhile.
    exec 9> "$cache/kernel.lock"
    flock 9
    if [[ ! -e $out/vmlinux ]]; then
        work=$(mktemp -d "$cache/kernel-build.XXXXXX")
        # shellcheck disable=SC2064 # the folder's name is known now
        trap "rm -rf '$work'" EXIT
        say "fetching $package $version"
        (cd "$work" && "$apt" "$suite" apt-get --quiet --quiet download "$package" >&2)
        dpkg-deb --fsys-tarfile "$work"/*.deb | tar --extract --to-stdout "./usr/src/$package.tar.xz" \
            | tar --extract --xz --directory "$work"
        build "$work/$package" "$work/objects" "$work/out"
        mv --no-target-directory "$work/out" "$out"
    fi
    echo "$out"
}

case ${1-} in
    '') build_package ;;
    --source) build_tree "${2:?build.sh: --source needs a folder}" ;;
    *)
        sed -n '2,/^$/p' "${BASH_SOURCE[0]}" >&2
        exit 2
        ;;
esac
