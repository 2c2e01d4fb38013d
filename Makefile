# clinisync: build with "make", see the rest with "make help".

MODULE_big = clinisync
EXTENSION = clinisync
EXTVERSION := $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" clinisync.control)

# From the ground up: a file calls only files above it.
OBJS = \
	src/settings.o \
	src/keyfile.o \
	src/secret.o \
	src/json.o \
	src/gzip.o \
	src/transport.o \
	src/cliniko.o \
	src/patient.o \
	src/catalog.o \
	src/identity.o \
	src/statement.o \
	src/caller.o \
	src/transaction.o \
	src/run.o \
	src/ranges.o \
	src/enumeration.o \
	src/store.o \
	src/batch.o \
	src/reconcile.o \
	src/organization.o \
	src/report.o \
	src/connection.o \
	src/budget.o \
	src/sync.o \
	src/attendance.o \
	src/worker.o \
	src/launcher.o \
	src/setup.o \
	src/functions.o \
	src/clinisync.o

DATA = $(wildcard sql/clinisync--*--*.sql)
DATA_built = sql/clinisync--$(EXTVERSION).sql

REGRESS = $(sort $(basename $(notdir $(wildcard test/sql/*.sql))))
REGRESS_OPTS = --inputdir=test

EXTRA_CLEAN = dist panel/dist panel/src/openapi.d.ts panel/node_modules

# Every extension's library shares one namespace in the server, so nothing is
# visible in it but what PostgreSQL calls. PostgreSQL 16 and later mark that
# themselves; for 15 PGDLLEXPORT has to be told what it means.
PG_CPPFLAGS = $(shell pkg-config --cflags libcurl libcrypto libdeflate 2>/dev/null) \
	'-DPGDLLEXPORT=__attribute__((visibility("default")))'
PG_CFLAGS = -fvisibility=hidden -Wextra -Wno-unused-parameter -Wno-sign-compare
SHLIB_LINK = $(shell pkg-config --libs libcurl libcrypto libdeflate 2>/dev/null || echo -lcurl -lcrypto -ldeflate)

PG_CONFIG ?= pg_config
PGXS := $(wildcard $(shell $(PG_CONFIG) --pgxs 2>/dev/null))
POSTGRES_H := $(wildcard $(shell $(PG_CONFIG) --includedir-server 2>/dev/null)/postgres.h)

ifeq ($(MAKECMDGOALS),check)
# PGXS has a target of that name, which only says that there is none
check:
	@test/run $@
else ifneq ($(and $(PGXS),$(POSTGRES_H)),)
include $(PGXS)
else
all install installcheck clean:
	@echo >&2 "$(PG_CONFIG) names no PostgreSQL to build against: install postgresql-server-dev-all, or set PG_CONFIG"
	@exit 1
endif

# PGXS follows no #include.
$(OBJS): $(wildcard src/*.h)

$(DATA_built): sql/clinisync.sql clinisync.control
	cp $< $@

test demo bench fuzz:
	@test/run $@

RELEASE ?= trixie

test-upgrade:
	@test/run upgrade

test-debian:
	@test/debian $(RELEASE)

soak:
	@test/run soak $(SECONDS)

panel:
	npm ci --prefix panel --ignore-scripts --no-audit --no-fund
	npm run --prefix panel build

deb:
	@debian/build-packages

# The archive for PGXN, of what is committed.
dist:
	@test "$$(sed -n 's/^   "version": "\(.*\)",$$/\1/p' META.json)" = $(EXTVERSION) || \
		{ echo >&2 'META.json and clinisync.control differ in the version'; exit 1; }
	mkdir -p dist
	git archive --format=zip --prefix=clinisync-$(EXTVERSION)/ --output=dist/clinisync-$(EXTVERSION).zip HEAD

test-packages:
	@test/packages $(RELEASE)

test-pages:
	@test/pages $(RELEASE)

lint:
	@test/lint

help:
	@echo 'make               build the extension'
	@echo 'make install       install it into the PostgreSQL that pg_config names'
	@echo 'make installcheck  run the SQL tests against the running server that PGHOST and PGPORT name'
	@echo 'make panel         build the admin panel into panel/dist, with npm'
	@echo 'make demo          watch 648 patients arrive in a throwaway database'
	@echo 'make check         run the tests that find most, in two minutes'
	@echo 'make test          run every test in throwaway databases'
	@echo '                   (SANITIZE=1: with sanitizers in the server; ASSERT=1: with assertions;'
	@echo '                   VALGRIND=1: some tests of the worker under valgrind)'
	@echo 'make test-upgrade  test upgrades, from what the last tag has installed'
	@echo 'make test-debian   do what the README says in a bare root of a Debian release'
	@echo 'make test-packages try the packages, the archive and the Dockerfile in such a root'
	@echo 'make test-pages    follow README.md and http/README.md from the first block to the last in such a root'
	@echo '                   (all three: RELEASE=trixie, bookworm or forky; need root)'
	@echo 'make soak          try random accounts, faults and deaths for SECONDS=... (default: 600)'
	@echo 'make fuzz          look for a minute for input from Cliniko that is read wrongly'
	@echo 'make bench         measure speed and memory beside other ways to do the same'
	@echo 'make deb           build a Debian package for each installed major version of PostgreSQL, into dist/'
	@echo 'make dist          pack what is committed for PGXN, into dist/'
	@echo 'make lint          check the shell programs, the workflow and the versions'
	@echo 'make clean         remove everything that the above made'

.PHONY: all install installcheck clean check test test-upgrade test-debian test-packages test-pages soak panel demo bench fuzz deb dist lint help
