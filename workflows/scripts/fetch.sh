#!/usr/bin/env bash
# The bytes of one source, on stdout:  bash fetch.sh < FILE-WITH-ONE-LINE > COPY
#
# Promise: stdin is one line, an absolute path or a file:, http: or https: URL. Exit 0 means that all
# its bytes were written, once. Anything else fails with one line that names the source without its
# query string, user and password: a signed URL is a secret, so it never stands in an argv either.
# Passing troubles (the network, 408, 429, 5xx) are retried: WORKFLOWS_FETCH_ATTEMPTS times in all
# (5), the waits doubling from WORKFLOWS_FETCH_BACKOFF_S (1). So is 403, with which some hosts answer
# too many requests, unless the URL is signed. A page that says sorry is not taken for data, nor is a
# .parquet or .gz file of which the ends are missing.
# A signed S3 URL must lead to the object of WORKFLOWS_ETAG; what was cut off goes on from there, and
# where the ETag is an MD5, the bytes are compared with it.
# Needs bash, and for URLs curl or, where it is missing, python3. Writes fetch.* in the directory.

set -euo pipefail

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

# Both downloads write fetch.body, print the HTTP status, leave the reason of a failure in
# fetch.error, and exit 0 only if the body is whole. Their other statuses are curl's.
with_curl() {
    local quoted=${1//\\/\\\\}
    quoted=${quoted//\"/\\\"}
    # --disable: not the user's .curlrc. --globoff: [ ] { } are part of the name.
    local resumed=()
    if [[ $is_signed && ${WORKFLOWS_ETAG:-} ]]; then
        resumed=(--continue-at - --header "If-Match: \"$WORKFLOWS_ETAG\"" --dump-header fetch.headers)
    fi
    printf 'url = "%s"\n' "${quoted// /%20}" |
        curl --disable --config - --globoff --proto '=http,https' --fail --location --silent --show-error \
            --connect-timeout 20 --speed-limit 1024 --speed-time 60 "${resumed[@]}" \
            --output fetch.body --write-out '%{http_code}' 2> fetch.error
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
import base64, shutil, sys, urllib.error, urllib.parse, urllib.request
try:
    url = "".join(chr(b) if 0x20 < b < 0x7f else "%%%02X" % b for b in sys.stdin.buffer.read())
    url, _, _ = url.partition("#")
    scheme, place, *rest = urllib.parse.urlsplit(url)
    login, _, place = place.rpartition("@")  # urllib takes it for a part of the name
    request = urllib.request.Request(urllib.parse.urlunsplit([scheme, place, *rest]))
    if login:
        login = base64.b64encode(urllib.parse.unquote_to_bytes(login)).decode()
        request.add_unredirected_header("Authorization", "Basic " + login)
    with urllib.request.urlopen(request, timeout=60) as response, open("fetch.body", "wb") as body:
        shutil.copyfileobj(response, body, 1 << 20)
        length = response.headers.get("Content-Length")
        if length is not None and body.tell() != int(length):
            raise OSError("the connection ended after %d of %s bytes" % (body.tell(), length))
        print(response.status)
except urllib.error.HTTPError as error:
    print(error.code)
    sys.exit(22)
except Exception as error:
    print("%s: %s" % (type(error).__name__, error), file=sys.stderr)
    sys.exit(3 if isinstance(error, ValueError) else 56)
' 2> fetch.error
}

download() {
    local url=$1 with status code error attempt
    local attempts=${WORKFLOWS_FETCH_ATTEMPTS:-5} wait_s=${WORKFLOWS_FETCH_BACKOFF_S:-1}
    without_secrets "$url"
    is_signed=
    [[ $url == *[?\&]X-Amz-Signature=* ]] && is_signed=yes
    if command -v curl > /dev/null; then with=with_curl
    elif command -v python3 > /dev/null; then with=with_python
    else fail "$shown: this node has neither curl nor python3 to fetch it with" 127
    fi
    : > fetch.body  # curl need not make a file of an empty answer
    for ((attempt = 1; ; attempt++)); do
        code=0
        # The body goes into a file first, and only a whole one is written. Only of a signed URL is
        # it known that a retry gets the same bytes: any other starts afresh.
        [[ $is_signed ]] || : > fetch.body
        status=$($with "$url") || code=$?
        ((code == 0 && ${status:-0} < 300)) && return  # a redirect to nowhere is no success
        error=$(< fetch.error)
        error=${error//"$url"/"$shown"}
        ((${status:-0} >= 300)) && error="HTTP status $status"
        [[ $status == 412 && $is_signed ]] && error="it has changed since it was listed: run the same again"
        [[ $status == 403 ]] && error+=${is_signed:+: access denied, or the URL has expired}
        [[ $status == 403 && ! $is_signed ]] && error+=": too many requests, or there is no such file"
        case $code:$status in
            # 3 no URL, 23 the disk is full, 60 a bad certificate: the same next time.
            22:408 | 22:429 | 22:5??) ;;
            22:403) [[ $is_signed ]] && break ;;
            33:* | 36:* | 22:416) : > fetch.body ;;  # it cannot go on from where it was
            0:* | 22:* | 3:* | 23:* | 60:*) break ;;
        esac
        ((attempt < attempts)) || break
        sleep "$wait_s"
        wait_s=$((wait_s * 2))
    done
    [[ $is_signed && $with == with_curl ]] && ((${status:-0} >= 300)) && error+=$(s3_says "$url")
    fail "$shown: ${error:-failed} (attempt $attempt of $attempts)"
}

# The body is what its name promises, as far as its ends can tell.
check_ends() {
    local start='' name=${filename:-${shown##*/}}
    IFS= LC_ALL=C read -r -d '' -N 200 start < fetch.body || true
    case ${name,,} in
        *.parquet)
            [[ ${start:0:4} == PAR1 && $(tail -c 4 fetch.body | tr -d '\0') == PAR1 ]] ||
                fail "$shown: not a whole Parquet file; it begins with: $(printable "$start")"
            ;;
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

# S3's ETag is the MD5 of what was put at once, unless a key of KMS or the client encrypts it.
check_md5() {
    local headers md5
    [[ $is_signed && ${WORKFLOWS_ETAG:-} =~ ^[0-9a-f]{32}$ && -f fetch.headers ]] || return 0
    headers=$(< fetch.headers)
    [[ ${headers,,} == *x-amz-server-side-encryption:*aws:kms* ]] && return
    [[ ${headers,,} == *x-amz-server-side-encryption-customer-algorithm:* ]] && return
    md5=$(md5sum < fetch.body)
    [[ ${md5%% *} == "$WORKFLOWS_ETAG" ]] ||
        fail "$shown: damaged on the way: its MD5 is ${md5%% *}, the ETag $WORKFLOWS_ETAG"
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
        download "$source"
        check_ends
        check_md5
        cat fetch.body
        rm -f fetch.body fetch.error fetch.headers
        ;;
    *)
        without_secrets "$source"
        fail "$shown: neither an absolute path nor a file:, http: or https: URL" 2
        ;;
esac
