#!/usr/bin/env bash
# The bytes of one source, on stdout:  bash fetch.sh < FILE-WITH-ONE-LINE > COPY
#
# Promise: stdin is one line, an absolute path or a file:, http: or https: URL. Exit 0 means that all
# its bytes were written, once. Anything else fails with one line that names the source without its
# query string, user and password: a signed URL is a secret, so it never stands in an argv either.
# Passing troubles (the network, 408, 429, 5xx) are retried: WORKFLOWS_FETCH_ATTEMPTS times in a row
# (5), the waits doubling from WORKFLOWS_FETCH_BACKOFF_S (1). So is 403, with which some hosts answer
# too many requests, unless the URL is signed. A page that says sorry is not taken for data, nor is a
# .parquet or .gz file of which the ends are missing.
# With WORKFLOWS_ETAG, which is what the source's ETag or Last-Modified was, bytes are passed on as
# they come, and what was cut off goes on from there, if it is still the same. Exit 75 means that it
# cannot go on, but that to begin anew may help. Without, a body is passed on once all of it is here.
# Of a signed S3 URL whose ETag is an MD5 the bytes are compared with it.
# Needs bash and coreutils, and for URLs curl or, where it is missing, python3. Writes fetch.* in the
# directory.

set -euo pipefail

AGAIN=75  # EX_TEMPFAIL of sysexits.h

fail() {
    printf 'fetch: %s\n' "$1" >&2
    exit "${2:-1}"
}

# Print the bytes of a file. exec, so that 1,000s of tiny keys cost one process each; and cat copies
# from file to file inside the kernel.
copy() {
    exec cat -- "$1"
}

# A file: URL's path, its %XX decoded.
path_of() {
    local encoded=/${1#*://*/}
    [[ $encoded =~ %(00|[^[:xdigit:]]|.[^[:xdigit:]]|.?$) ]] && fail "$1: not a percent-encoded URL" 2
    encoded=${encoded//\\/\\\\}
    printf -v path %b "${encoded//%/\\x}"
}

# What may be shown of a URL.
without_secrets() {
    shown=${1%%[?#]*}
    [[ $shown =~ ^([^/]*//)[^/]*@(.*)$ ]] && shown=${BASH_REMATCH[1]}${BASH_REMATCH[2]}
    return 0
}

# Both downloads write what comes to a file, print the HTTP status and how many bytes came, leave the
# reason of a failure in fetch.error, and exit 0 only if all of it came. Their other statuses are curl's.
#     with_curl URL FILE BYTES-THAT-CAME-BEFORE
with_curl() {
    local quoted=${1//\\/\\\\}
    quoted=${quoted//\"/\\\"}
    # --disable: not the user's .curlrc. --globoff: [ ] { } are part of the name.
    local more=()
    [[ $is_signed && $etag ]] && more=(--header "If-Match: \"$etag\"" --dump-header fetch.headers)
    if (($3)); then
        more+=(--continue-at "$3")
        [[ $is_signed ]] || more+=(--header "If-Range: $WORKFLOWS_ETAG")
    fi
    printf 'url = "%s"\n' "${quoted// /%20}" |
        curl --disable --config - --globoff --proto '=http,https' --fail --location --silent --show-error \
            --connect-timeout 20 --speed-limit 1024 --speed-time 60 "${more[@]}" \
            --output "$2" --write-out '%{http_code} %{size_download}' 2> fetch.error
}

# Print the code of what S3 answers, and what to do; curl --fail does not show it, so ask once more.
s3_says() {
    local quoted=${1//\\/\\\\} answer code
    answer=$(printf 'url = "%s"\n' "${quoted//\"/\\\"}" |
        curl --disable --config - --globoff --proto '=http,https' --silent --connect-timeout 20 \
            --max-time 20 --range 0-2047 2> /dev/null | head -c 2048 | tr -d '\0') || true
    [[ $answer =~ \<Code\>([A-Za-z]+)\</Code\> ]] || return 0
    code=${BASH_REMATCH[1]}
    printf ' %s' "$code"
    case $code in
        Expired* | RequestExpired | TokenRefreshRequired) printf '; the credentials have expired: log in again, then run the same' ;;
        AccessDenied) printf '; these credentials may not: grant s3:GetObject on it, or choose others with [s3] profile' ;;
        SlowDown | ServiceUnavailable | InternalError) printf '; S3 asks for less at once: run the same again later' ;;
        PermanentRedirect | AuthorizationHeaderMalformed | IllegalLocation*) printf '; the bucket is in another region: set [s3] region' ;;
        NoSuchKey) printf '; it was removed after it was listed: run the same again' ;;
        RequestTimeTooSkewed) printf '; the clock of the machine that signs is wrong: set it' ;;
    esac
}

with_python() {
    printf %s "$1" | python3 -I -S -c '
import base64, sys, urllib.error, urllib.parse, urllib.request
status = count = code = 0
try:
    url = "".join(chr(b) if 0x20 < b < 0x7f else "%%%02X" % b for b in sys.stdin.buffer.read())
    url, _, _ = url.partition("#")
    scheme, place, *rest = urllib.parse.urlsplit(url)
    login, _, place = place.rpartition("@")  # urllib takes it for a part of the name
    request = urllib.request.Request(urllib.parse.urlunsplit([scheme, place, *rest]))
    if login:
        login = base64.b64encode(urllib.parse.unquote_to_bytes(login)).decode()
        request.add_unredirected_header("Authorization", "Basic " + login)
    with urllib.request.urlopen(request, timeout=60) as response, open(sys.argv[1], "wb") as body:
        status = response.status
        for chunk in iter(lambda: response.read(1 << 20), b""):
            count += len(chunk)
            body.write(chunk)
        length = response.headers.get("Content-Length")
        if length is not None and count != int(length):
            raise OSError("the connection ended after %d of %s bytes" % (count, length))
except urllib.error.HTTPError as error:
    status, code = error.code, 22
except BrokenPipeError:
    code = 23
except Exception as error:
    print("%s: %s" % (type(error).__name__, error), file=sys.stderr)
    code = 3 if isinstance(error, ValueError) else 56
print(status, count)
sys.exit(code)
' "$2" 2> fetch.error
}

# Write a URL's body to a file, from its beginning in each attempt; or if it is a stream, going on
# from where it was, as often as some of it comes.
#     download URL FILE [stream]
download() {
    local url=$1 into=$2 is_stream=${3:-} passed=0 with said status came code error attempt
    local attempts=${WORKFLOWS_FETCH_ATTEMPTS:-5} backoff_s=${WORKFLOWS_FETCH_BACKOFF_S:-1}
    local wait_s=$backoff_s
    if command -v curl > /dev/null; then with=with_curl
    elif command -v python3 > /dev/null; then with=with_python
    else fail "$shown: this node has neither curl nor python3 to fetch it with" 127
    fi
    for ((attempt = 1; ; attempt++)); do
        code=0
        [[ $is_stream ]] || : > "$into"  # curl need not make a file of an empty answer
        said=$("$with" "$url" "$into" "$passed") || code=$?
        status=${said% *} came=${said#* }
        ((code == 0 && ${status:-0} < 300)) && return  # a redirect to nowhere is no success
        ((code == 23)) && [[ $is_stream ]] && exit 1  # nobody reads it any longer: who did says why
        error=$(< fetch.error)
        error=${error//"$url"/"$shown"}
        if ((${status:-0} >= 300)); then
            error="HTTP status $status" came=0
        elif [[ $is_stream ]] && ((${came:-1} > 0)); then
            ((passed += ${came:-1}, attempt = 1))
            wait_s=$backoff_s
            # Killed, and nobody knows how much came; or it is not curl, which can go on.
            [[ $came && $with == with_curl ]] || break
        fi
        [[ $status == 412 && $is_signed ]] && error="it has changed since it was listed: run the same again"
        [[ $status == 403 ]] && error+=${is_signed:+: access denied, or the URL has expired}
        [[ $status == 403 && ! $is_signed ]] && error+=": too many requests, or there is no such file"
        case $code:$status in
            # 3 no URL, 23 the disk is full, 33 it cannot go on, 60 a bad certificate: the same next time.
            22:408 | 22:429 | 22:5??) ;;
            22:403) [[ $is_signed ]] && break ;;
            0:* | 22:* | 3:* | 23:* | 33:* | 36:* | 60:*) break ;;
        esac
        ((attempt < attempts)) || break
        sleep "$wait_s"
        wait_s=$((wait_s * 2))
    done
    [[ $is_signed && $with == with_curl ]] && ((${status:-0} >= 300)) && error+=$(s3_says "$url")
    ((passed)) && error+=", after $passed bytes"
    fail "$shown: ${error:-failed} (attempt $attempt of $attempts)" $((passed ? AGAIN : 1))
}

# Pass a URL's body on as it comes.
stream() {
    local codes
    set +e
    download "$1" /dev/fd/3 stream 3>&1 2> fetch.said | pass_on 2> fetch.refused
    codes=("${PIPESTATUS[@]}")
    set -e
    if [[ -s fetch.said ]]; then  # what came may not be what was asked for: then that is refused, too
        cat fetch.said >&2
        exit "${codes[0]}"
    fi
    cat fetch.refused >&2
    ((codes[1] == 0)) || exit "${codes[1]}"
    ((codes[0] == 0)) || exit "${codes[0]}"
    [[ -s fetch.start ]] || check_start fetch.start  # nothing came: that is not always allowed
}

# Pass stdin on, once it begins as its name promises; leave how it ends, and its MD5 where the ETag
# is one, in fetch.end and fetch.md5.
pass_on() {
    local sinks=() code=0
    dd bs=1 count=200 of=fetch.start 2> /dev/null || fail "$shown: cannot write fetch.start"
    [[ -s fetch.start ]] || return 0
    check_start fetch.start
    if [[ ${name,,} == *.parquet ]]; then
        mkfifo fetch.tail && sinks+=(fetch.tail)
        tail -c 4 < fetch.tail > fetch.end &
    fi
    if [[ $is_signed && $etag =~ ^[0-9a-f]{32}$ ]]; then
        mkfifo fetch.sum && sinks+=(fetch.sum)
        md5sum < fetch.sum > fetch.md5 &
    fi
    ((${#sinks[@]})) || exec cat fetch.start -
    cat fetch.start - | tee "${sinks[@]}" || code=$?
    wait
    return "$code"
}

# The body begins as its name promises, as far as that can be told.
check_start() {
    local start=''
    IFS= LC_ALL=C read -r -d '' -N 200 start < "$1" || true
    case ${name,,} in
        *.parquet) [[ ${start:0:4} == PAR1 ]] || fail "$shown: not a whole Parquet file; it begins with: $(printable "$start")" ;;
        *.gz) [[ ${start:0:2} == $'\x1f\x8b' || ! $start ]] || fail "$shown: not a gzip file; it begins with: $(printable "$start")" ;;
        *.xml | *.htm | *.html | *.svg) ;;
        *)
            start=${start#$'\xef\xbb\xbf'}
            start=${start#"${start%%[![:space:]]*}"}
            case ${start,,} in
                '<?xml'* | '<error'* | '<!doctype html'* | '<html'*)
                    fail "$shown: an error page instead of data; it begins with: $(printable "$start")"
                    ;;
            esac
            ;;
    esac
}

printable() {
    local text=${1:0:120}
    printf %s "${text//[![:print:]]/ }"
}

# A Parquet file ends as it begins.
check_end() {
    [[ ${name,,} != *.parquet || $(tail -c 4 "$1" | tr -d '\0') == PAR1 ]] ||
        fail "$shown: not a whole Parquet file: its end is missing"
}

# S3's ETag is the MD5 of what was put at once, unless a key of KMS or the client encrypts it.
check_md5() {
    local headers md5
    [[ -f fetch.md5 && -f fetch.headers ]] || return 0
    headers=$(< fetch.headers)
    [[ ${headers,,} == *x-amz-server-side-encryption:*aws:kms* ]] && return
    [[ ${headers,,} == *x-amz-server-side-encryption-customer-algorithm:* ]] && return
    md5=$(< fetch.md5)
    [[ ${md5%% *} == "$etag" ]] ||
        fail "$shown: damaged on the way: its MD5 is ${md5%% *}, the ETag $etag" "$AGAIN"
}

source=
IFS= read -r source || [[ $source ]] || fail "no source on stdin" 2
IFS= read -r _ && fail "more than one line on stdin" 2
case ${source,,} in
    /*) copy "$source" ;;
    file:///* | file://localhost/*)
        path_of "$source"
        copy "$path"
        ;;
    http://* | https://*)
        without_secrets "$source"
        name=${filename:-${shown##*/}} is_signed=
        [[ $source == *[?\&]X-Amz-Signature=* ]] && is_signed=yes
        etag=${WORKFLOWS_ETAG:-}
        etag=${etag#\"} etag=${etag%\"}
        files=(fetch.start fetch.said fetch.refused fetch.tail fetch.end fetch.sum fetch.md5 fetch.headers fetch.error)
        rm -f "${files[@]}"
        if [[ $etag ]]; then
            stream "$source"
            check_end fetch.end
            check_md5
        else
            download "$source" fetch.body
            check_start fetch.body
            check_end fetch.body
            cat fetch.body
        fi
        rm -f fetch.body "${files[@]}"
        ;;
    *)
        without_secrets "$source"
        fail "$shown: neither an absolute path nor a file:, http: or https: URL" 2
        ;;
esac
