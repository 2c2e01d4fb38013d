# shellcheck shell=bash
#
# A PostgreSQL whose assertions are on and that tells valgrind of its memory,
# built from the source package of the one that is installed.
#
#	asserting_postgresql VERSION   build it unless that was done before
#	asserting_prefix VERSION       where it is
#
# It is kept in ~/.cache/clinisync/postgresql-VERSION-assert, and works from
# wherever it is copied to. VERSION is as 15.20; where the mirror has no source
# of that, but of another minor release, it is the newest of these.
# Source common.sh first. This needs flex, bison, and headers of valgrind and OpenSSL.

asserting_prefix() {
	echo "${XDG_CACHE_HOME:-$HOME/.cache}/clinisync/postgresql-$1-assert"
}

# Build it. Says what it does, and fails after it has said why.
asserting_postgresql() {
	local version=$1 prefix configuration making status=0
	prefix=$(asserting_prefix "$version")
	mapfile -t configuration < <(asserting_configuration "$prefix" "${version%%.*}")
	mkdir -p "${prefix%/*}"
	# one at a time: who comes second finds it done
	exec {asserting_lock}>"$prefix.lock"
	flock "$asserting_lock"
	if ! is_configured_with "$prefix" "${configuration[@]}"; then
		announce Building "PostgreSQL with assertions, once: a few minutes"
		making=$(mktemp -d)
		record "$making/log" fetch_postgresql "$version" "$making" &&
			record "$making/log" compile_postgresql "$making/source" "$making/root" "${configuration[@]}" &&
			rm -rf "$prefix" "$prefix.new" &&
			mv "$making/root$prefix" "$prefix.new" &&
			mv "$prefix.new" "$prefix" || status=$?
		rm -rf "$making"
	fi
	exec {asserting_lock}>&-
	return "$status"
}

# What the tests do without is left out. Reports name lines: --enable-debug.
asserting_configuration() {
	local prefix=$1 major=$2
	printf '%s\n' "--prefix=$prefix" --enable-cassert --enable-debug --enable-tap-tests \
		--with-openssl --without-readline --without-zlib
	# 15 has no ICU unless it is asked for, the others have it unless they are asked not to
	((major < 16)) || echo --without-icu
	printf '%s\n' 'CFLAGS=-O1 -fno-omit-frame-pointer' CPPFLAGS=-DUSE_VALGRIND
}

is_configured_with() {
	local prefix=$1 wanted
	shift
	printf -v wanted " '%s'" "$@"
	[[ -x $prefix/bin/pg_config && "$("$prefix/bin/pg_config" --configure)" == "$wanted" ]]
}

# Fetch and unpack PostgreSQL's own source, without a distribution's patches,
# from where apt gets the packages. Only files in this directory are written.
fetch_postgresql() {
	local version=$1 to=$2 package=postgresql-${1%%.*} apt found
	apt=(-o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$to/sources"
		-o "Dir::State::Lists=$to/lists" -o "Dir::Cache=$to/cache" -o "APT::Sandbox::User=$(id -un)")
	mkdir -p "$to/source" "$to/sources" "$to/lists/partial" "$to/cache/archives/partial"
	list_sources "$to/sources"
	apt-get "${apt[@]}" update || true
	# this version first, then from the newest down
	apt-cache "${apt[@]}" showsrc "$package" | sed -n 's/^Version: //p' | sort -rVu >"$to/versions"
	while read -r found; do
		(cd "$to" && apt-get "${apt[@]}" source --download-only "$package=$found") || continue
		tar -C "$to/source" --strip-components=1 -xf "$to/${package}_"*.orig.tar.*[a-z0-9]
		return
	done < <(grep "^$version-" "$to/versions"; grep -v "^$version-" "$to/versions")
	echo "none of apt's sources gave the source of $package"
	return 1
}

# Turn apt's own list of sources into one of source packages, in this directory.
list_sources() {
	local to=$1 file
	for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
		[[ ! -e $file ]] || sed -n 's/^deb /deb-src /p' "$file" >"$to/$(basename "$file" .list).list"
	done
	for file in /etc/apt/sources.list.d/*.sources; do
		[[ ! -e $file ]] || sed 's/^Types:.*/Types: deb-src/' "$file" >"$to/${file##*/}"
	done
}

# Build this source and install it below a directory; in a shell of its own,
# which may go where it likes.
compile_postgresql() (
	local source=$1 to=$2 make=(make -s "-j$(nproc)") prefix=${3#--prefix=}
	shift 2
	# a program finds its libpq from where it is itself
	# shellcheck disable=SC2016 # for the linker
	make+=('rpathdir=$$ORIGIN/../lib' "DESTDIR=$to")
	cd "$source" &&
		./configure --quiet "$@" &&
		"${make[@]}" &&
		"${make[@]}" install &&
		"${make[@]}" -C contrib/pg_stat_statements install &&
		"${make[@]}" -C contrib/auto_explain install &&
		# what PostgreSQL itself does on purpose
		cp src/tools/valgrind.supp "$to$prefix/share"
)
