# shellcheck shell=bash disable=SC2016
# Sourced by the scripts that make a Debian tree: the host's way to packages, taken along.
# Owns the functions below, no state but `suite_options`. It is not a script of its own.
#
# Whatever apt sources, proxy, resolver, certificates and pip configuration this machine has, the
# tree gets the same, with the suite's name put in place of the host's. So nothing here names a mirror.

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

need() { # program, package: one line and status 3 when it is missing
  command -v "$1" >/dev/null || { say "no $1; fix: apt-get install $2 (tools/setup image does)"; exit 3; }
}

# Writes deb822 sources for a suite into a file: those of the host, renamed, with backports on request.
suite_sources() { # suite, file, [more suites...]
  local suite=$1 file=$2 host uris security; shift 2
  host=$(. /etc/os-release; echo "$VERSION_CODENAME")
  uris=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(SUITE)' 'Created-By: Packages' |
    awk -v s="$host" '$2 == s {print $1; exit}')
  security=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' |
    awk -v s="$host-security" '$2 == s {print $1; exit}')
  if [ -z "$uris" ]; then say "no apt source for Debian $host on this machine"; exit 3; fi
  {
    printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\n' "$uris" "$suite $suite-updates $*"
    printf 'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n'
    if [ -n "$security" ]; then
      printf '\nTypes: deb\nURIs: %s\nSuites: %s-security\nComponents: main\n' "$security" "$suite"
      printf 'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n'
    fi
  } > "$file"
}

# Makes a tree of a suite with packages in it, unless one with the same list is there already.
suite_tree() { # suite, directory, sources, packages...
  local suite=$1 tree=$2 sources=$3 key; shift 3
  key="$suite $*"
  [ "$(cat "$tree/.made-of" 2>/dev/null || true)" = "$key" ] && return
  say "making ${tree##*/} ($suite, $# packages)"
  rm -rf --one-file-system "$tree"
  suite_options=()
  while IFS= read -r line; do suite_options+=(--aptopt="$line"); done < <(
    apt-config dump | grep -E '^Acquire::(https?::[Pp]roxy|Check-Valid-Until|Check-Date|Retries) ')
  mmdebstrap --quiet --variant=apt --include="$(IFS=,; echo "$*")" "${suite_options[@]}" \
    "$suite" "$tree" "$sources"
  printf '%s' "$key" > "$tree/.made-of"
}

# What pip and apt need inside a tree: resolver, certificates, pip's configuration.
suite_network() { # directory
  local tree=$1
  rm -f "$tree/etc/resolv.conf"; cp -L /etc/resolv.conf "$tree/etc/resolv.conf"
  if compgen -G '/usr/local/share/ca-certificates/*.crt' >/dev/null; then
    mkdir -p "$tree/usr/local/share/ca-certificates"
    cp /usr/local/share/ca-certificates/*.crt "$tree/usr/local/share/ca-certificates/"
    chroot "$tree" update-ca-certificates >/dev/null 2>&1
  fi
  [ ! -f /etc/pip.conf ] || cp /etc/pip.conf "$tree/etc/pip.conf"
  if [ -f /root/.config/pip/pip.conf ]; then
    mkdir -p "$tree/root/.config/pip"; cp /root/.config/pip/pip.conf "$tree/root/.config/pip/"
  fi
}

# The caller's proxies and index, for a command that runs in a tree with an empty environment.
suite_environment() {
  printf '%s\n' HOME=/root LANG=C.UTF-8 TERM=dumb DEBIAN_FRONTEND=noninteractive \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  env | grep -E '^(https?_proxy|no_proxy|HTTPS?_PROXY|NO_PROXY|PIP_(INDEX_URL|EXTRA_INDEX_URL|CERT|DEFAULT_TIMEOUT))=' || true
}
