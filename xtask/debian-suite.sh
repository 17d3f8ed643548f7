#!/bin/bash
# Runs apt on another Debian suite than this machine's, with an apt state of its own, so that the machine's package
# lists and packages stay as they are. The mirror is the one that this machine's own sources name.
#
# usage: debian-suite.sh SUITE sources           print the path of a sources.list for the suite
#        debian-suite.sh SUITE apt-get ARG…      (or apt-cache)
#
# The lists are fetched again when they are older than a day.
set -euo pipefail
suite=$1
shift
state=${XDG_CACHE_HOME:-$HOME/.cache}/podvisor/apt/$suite
mkdir -p "$state/lists/partial" "$state/archives/partial"

mirror=$(apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' | awk '$1 == "Debian" { print $2; exit }')
if [[ -z $mirror ]]; then
    echo "debian-suite: the apt sources of this machine name no Debian mirror (run apt-get update first)" >&2
    exit 1
fi
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keyring] $mirror $suite main" > "$state/sources.list.new"
mv "$state/sources.list.new" "$state/sources.list"

if [[ $1 == sources ]]; then
    echo "$state/sources.list"
    exit
fi

program=$1
shift
options=(
    -o "Dir::Etc::sourcelist=$state/sources.list"
    -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State::Lists=$state/lists"
    -o Dir::State::status=/dev/null
    -o "Dir::Cache=$state"
    -o "Dir::Cache::archives=$state/archives"
    -o Acquire::Languages=none
    # Mirrors that are snapshots serve Release files past their date.
    -o Acquire::Check-Valid-Until=false
    -o APT::Sandbox::User=root
)
if [[ -z $(find "$state/updated" -mtime -1 2> /dev/null) ]]; then
    flock "$state/lists" apt-get "${options[@]}" --quiet --quiet update >&2
    touch "$state/updated"
fi
exec "$program" "${options[@]}" "$@"
