# shellcheck shell=bash
#
# What the shell programs of the tests share: how they speak, and how they copy
# the checkout. To be sourced by a program that has set "root", the checkout.

announce() {
	printf '  %-11s %s\n' "$1" "$2"
}

fail() {
	printf 'clinisync: %s\n' "$1" >&2
	exit 1
}

as_root() {
	if ((EUID == 0)); then
		"$@"
	else
		sudo "$@"
	fi
}

# Run a command whose output is worth reading only if it fails: keep it in the
# file LOG, and show the end of it then. record LOG COMMAND ARGUMENT...
record() {
	local log=$1 shown_lines=60 before=0 lines
	shift
	[[ ! -e $log ]] || before=$(wc -l <"$log")
	"$@" >>"$log" 2>&1 </dev/null && return
	lines=$(($(wc -l <"$log") - before))
	if ((lines > shown_lines)); then
		printf '[%d lines left out]\n' $((lines - shown_lines)) >&2
		lines=$shown_lines
	fi
	tail -n "$lines" "$log" >&2
	return 1
}

# Copy into an empty directory what git would commit, or everything where the
# checkout is not git's.
copy_checkout() {
	local to=$1 git=(git -C "$root" -c safe.directory="$root")
	if [[ -e $root/.git ]] && "${git[@]}" rev-parse >/dev/null 2>&1; then
		"${git[@]}" ls-files -z --cached --others --exclude-standard --deduplicate |
			while IFS= read -rd '' file; do
				[[ ! -e $root/$file ]] || printf '%s\0' "$file"
			done |
			tar -C "$root" --null --files-from=- -cf - | tar -C "$to" -xf -
	else
		tar -C "$root" --exclude-vcs --exclude='*.o' --exclude='*.bc' --exclude='*.so' \
			--exclude=node_modules --exclude=tmp_check --exclude=./dist -cf - . | tar -C "$to" -xf -
	fi
}
