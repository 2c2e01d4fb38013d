# shellcheck shell=bash
#
# A bare Debian in a directory, as a new user's machine is: nothing but what
# debootstrap's minbase has, make, git and certificates. Source common.sh first.
#
#	bare_root_make trixie DIRECTORY     a fresh copy of that release
#	bare_root_run DIRECTORY COMMAND...  run a command in it, as root
#	bare_root_remove DIRECTORY
#
# What debootstrap made is kept for a month, in ~/.cache/clinisync; DIRECTORY is
# a copy of that. Of the machine's own files only its way to the package
# registries goes in: name resolution, certificate authorities, settings of apt
# and npm. A command runs in namespaces of its own, so its mounts and every
# process that it leaves end with it, whichever way it ends.
#
# All of this needs root.

readonly bare_root_cache=${XDG_CACHE_HOME:-$HOME/.cache}/clinisync
readonly bare_root_max_age_days=30

# Install programs that are missing: bare_root_require PROGRAM=PACKAGE...
bare_root_require() {
	local pair missing=()
	for pair in debootstrap=debootstrap unshare=util-linux "$@"; do
		type -P "${pair%=*}" >/dev/null || missing+=("${pair#*=}")
	done
	((${#missing[@]} > 0)) || return 0
	type -P apt-get >/dev/null || fail "missing, and no apt-get to install it with: ${missing[*]}"
	announce Installing "${missing[*]}"
	apt-get -q update >/dev/null 2>&1 || true
	DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends \
		debian-archive-keyring "${missing[@]}" >/dev/null 2>&1 || fail "apt-get cannot install ${missing[*]}"
}

# Bootstrap a release into the cache unless it is there, and say where.
bare_root_base() {
	local release=$1 base=$bare_root_cache/debian-$1 scripts=/usr/share/debootstrap making
	if [[ -n $(find "$base" -maxdepth 0 -mtime -$bare_root_max_age_days 2>/dev/null) ]]; then
		echo "$base"
		return
	fi
	mkdir -p "$bare_root_cache"
	making=$(mktemp -d "$bare_root_cache/making.XXXXXX")
	if [[ ! -e $scripts/scripts/$release ]]; then
		# a release younger than this machine's debootstrap is made as the unstable one is
		cp -r "$scripts" "$making/debootstrap"
		ln -s sid "$making/debootstrap/scripts/$release"
		scripts=$making/debootstrap
	fi
	if ! DEBOOTSTRAP_DIR=$scripts debootstrap --variant=minbase --include=ca-certificates,git,make \
		"$release" "$making/root" >"$making/log" 2>&1; then
		tail -n 20 "$making/log" >&2
		rm -rf --one-file-system "$making"
		return 1
	fi
	rm -rf --one-file-system "$base"
	mv "$making/root" "$base"
	touch "$base"
	rm -rf "$making"
	echo "$base"
}

# Make a fresh copy of a release. Where the mirror cannot give it, says so in a line
# that .ci/run repeats, and ends the program with status 3.
bare_root_make() {
	local release=$1 directory=$2 base
	base=$(bare_root_base "$release") || {
		echo "NOT TRIED: Debian $release: the mirror did not give it"
		exit 3
	}
	mkdir -p "$directory"
	cp -a "$base/." "$directory"
	bare_root_connect "$directory"
}

# Let a root use the registries as this machine does.
bare_root_connect() {
	local directory=$1 authorities=/usr/local/share/ca-certificates file
	cp --no-preserve=mode /etc/resolv.conf "$directory/etc/resolv.conf"
	if [[ -n $(find "$authorities" -name '*.crt' 2>/dev/null) ]]; then
		cp -r "$authorities/." "$directory$authorities"
		chroot "$directory" update-ca-certificates >/dev/null 2>&1
	fi
	# a proxy, and whether a release file that has expired will do
	apt-config dump 2>/dev/null | grep -E '^Acquire::(https?|Check-[A-Za-z-]+)(::| )' \
		>"$directory/etc/apt/apt.conf.d/90machine" || true
	for file in /etc/npmrc ~/.npmrc; do
		[[ ! -e $file ]] || cp "$file" "$directory$file"
	done
}

bare_root_run() {
	local directory=$1 variable keep=()
	shift
	while read -r variable; do
		keep+=("$variable=${!variable}")
	done < <(compgen -e | grep -iE '^((https?|no)_proxy|npm_config_.*)$')
	[[ -z $(find "$directory/usr/local/share/ca-certificates" -name '*.crt') ]] ||
		keep+=(NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt)
	# the shell stays, as the parent of what loses its own
	# shellcheck disable=SC2016 # for the inner shell
	unshare --mount --pid --fork --kill-child sh -c '
		root=$1
		shift
		mount --make-rprivate / &&
		mount --rbind /dev "$root/dev" &&
		mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm" &&
		mount -t proc proc "$root/proc" || exit
		chroot "$root" "$@"
		exit $?' sh "$directory" \
		env -i HOME=/root LANG=C.UTF-8 TERM="${TERM:-dumb}" \
		PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "${keep[@]}" "$@"
}

bare_root_remove() {
	[[ ! -d $1 ]] || rm -rf --one-file-system "$1"
}
