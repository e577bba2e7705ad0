# Programs out of Go modules, for tools/images.sh and tools/docker.sh, which source this.

say() { printf '%s\n' "$*" >&2; }
die() { say "$@"; exit 1; }
need() { command -v "$1" >/dev/null || die "$1 is missing; on Debian: apt-get install $2"; }

# go_build LOG GO-BUILD-ARGUMENTS…: in the module of this folder; static, so that it runs in any image.
go_build() {
    local log=$1
    shift
    CGO_ENABLED=0 GOFLAGS=-buildvcs=false go build -mod=mod -trimpath "$@" >"$log" 2>&1 && return
    grep -v downloading "$log" | tail -n 15 >&2
    return 1
}

# go_program FILE MODULE VERSION PACKAGE [LDFLAGS [REPLACE]]: makes FILE, which has the version in its name, once. The module is one of
# our own that requires the other: `go install` refuses those that replace or exclude modules.
go_program() {
    local file=$1 module=$2 version=$3 package=$4 work
    [ ! -x "$file" ] || return 0
    need go "golang, or bring Go 1.25 or later"
    work=$(mktemp -d)
    mkdir -p "${file%/*}"
    printf 'module lepton.invalid/program\n\ngo 1.24\n\nrequire %s %s\n%s\n' "$module" "$version" "${6:+replace $6}" >"$work/go.mod"
    (cd "$work" && go_build "$file.log" -ldflags "-s -w ${5:-}" -o "$file.part" "$package") || die "$package $version does not build: $file.log"
    rm -rf "$work"
    mv "$file.part" "$file"
}
