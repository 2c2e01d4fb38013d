# PostgreSQL with clinisync, on the official image:
#
#	docker build --build-arg PG_MAJOR=17 --tag clinisync .
#
# The server preloads clinisync, in a new and in an existing data directory. To
# run it with a command of your own, say so there:
#
#	docker run ... clinisync postgres -c shared_preload_libraries=pg_cron,clinisync

ARG PG_MAJOR=17
FROM postgres:${PG_MAJOR}

COPY . /usr/src/clinisync/

# One layer, which adds clinisync, the libraries that it is linked with, and the
# certificates that it trusts. What it was built with is removed again: of all
# packages, those stay that were there before or that clinisync needs. The
# image's locales are its own, and an upgrade of their package would drop them.
RUN set -eu; \
	apt-get update; \
	apt-mark hold locales; \
	apt-get install -y --no-install-recommends ca-certificates; \
	manual="$(apt-mark showmanual)"; \
	apt-get install -y --no-install-recommends \
		build-essential \
		libcurl4-openssl-dev \
		libdeflate-dev \
		libssl-dev \
		pkg-config \
		"postgresql-server-dev-${PG_MAJOR}" \
	; \
	cd /usr/src/clinisync; \
	pg_config="/usr/lib/postgresql/${PG_MAJOR}/bin/pg_config"; \
# the bitcode is for inlining into JIT-compiled queries: nothing here
	make PG_CONFIG="$pg_config" with_llvm=no clean; \
	make PG_CONFIG="$pg_config" with_llvm=no all install; \
	cd /; \
	rm -r /usr/src/clinisync; \
	apt-mark auto '.*' >/dev/null; \
	apt-mark manual $manual >/dev/null; \
# ldd says /lib/..., where the list of the package may say /usr/lib/...
	ldd "$("$pg_config" --pkglibdir)/clinisync.so" \
		| sed -nE 's:.*=> (/usr)?(/lib/[^ ]*) .*:*\2:p' \
		| xargs dpkg-query --search \
		| sed -nE 's/^([^ ]*): .*/\1/p' \
		| sort -u \
		| xargs apt-mark manual; \
	apt-get purge -y --auto-remove \
		-o APT::AutoRemove::RecommendsImportant=false -o APT::AutoRemove::SuggestsImportant=false; \
	apt-mark unhold locales; \
	rm -rf /var/lib/apt/lists/*

CMD ["postgres", "-c", "shared_preload_libraries=clinisync"]
