#!/usr/bin/env bash
# The bytes of one source, on stdout:  bash fetch.sh < FILE-WITH-ONE-LINE > COPY
#
# Promise: stdin is one line, an absolute path or a file:, http: or https: URL. Exit 0 means that all
# its bytes were written, once. Anything else fails with one line that names the source without its
# query string, user and password: a signed URL is a secret, so it never stands in an argv either.
# Passing troubles (the network, 408, 429, 5xx) are retried: WORKFLOWS_FETCH_ATTEMPTS times in a row
# (5), the waits doubling from WORKFLOWS_FETCH_BACKOFF_S (1). So is 403, with which some hosts answer
# too many requests, unless the URL is signed. A page that says sorry is not taken for data, nor what
# does not begin as a .parquet or .gz file does, nor a .parquet file without its end.
# With WORKFLOWS_ETAG, which is what the source's ETag or Last-Modified was, bytes are passed on as
# they come; without, once all of them are here. There must be WORKFLOWS_SIZE of them, if that is
# known: then what was cut off goes on from there. What says that it is another version is refused.
# Of a signed S3 URL whose ETag is an MD5 the bytes are compared with it. Exit 75 means that some bytes
# were passed on, and cannot be completed, but that to begin anew may help.
# Needs bash and coreutils, and for URLs curl or, where it is missing, python3. Writes fetch.* in the
# directory.

set -euo pipefail

unset url source quoted answer  # if they are exported, curl would be given the secret in its environment
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
    [[ $if_match ]] && more+=(--header "If-Match: $if_match")
    if (($3)); then
        more+=(--continue-at "$3")
        [[ $if_match ]] || more+=(--header "If-Range: $WORKFLOWS_ETAG")
    fi
    printf 'url = "%s"\n' "${quoted// /%20}" |
        curl --disable --config - --globoff --proto '=http,https' --fail --location --silent --show-error \
            --connect-timeout 20 --speed-limit 1024 --speed-time 60 --dump-header fetch.headers \
            ${more[@]+"${more[@]}"} --output "$2" --write-out '%{http_code} %{size_download}' 2> fetch.error
}

# Print the code of what S3 answers, and what to do; curl --fail does not show it, so ask once more.
s3_says() {
    local quoted=${1//\\/\\\\} answer code message=''
    local ours='; no right is missing: if workflows signed this URL, please report this; else sign it again'
    answer=$(printf 'url = "%s"\n' "${quoted//\"/\\\"}" |
        curl --disable --config - --globoff --proto '=http,https' --silent --connect-timeout 20 \
            --max-time 20 --range 0-2047 2> /dev/null | head -c 2048 | tr -d '\0') || true
    [[ $answer =~ \<Code\>([A-Za-z]+)\</Code\> ]] || return 0
    code=${BASH_REMATCH[1]}
    [[ $answer =~ \<Message\>([^\<]*)\</Message\> ]] && message=${BASH_REMATCH[1]}
    printf ': %s %s' "$code" "$message"
    case "$code $message" in
        AccessDenied*'not signed'* | SignatureDoesNotMatch* | InvalidArgument* | InvalidParameter* | InvalidRequest*)
            printf %s "$ours" ;;
        Expired* | RequestExpired* | TokenRefreshRequired* | AccessDenied*'has expired'*)
            printf '; the credentials have expired: log in again (aws sso login), then run the same.'
            printf ' If the login is fresh, set the clock of the machine that runs workflows' ;;
        RequestTimeTooSkewed* | AccessDenied*'yet valid'* | AccessDenied*'valid yet'*)
            printf '; the clock of the machine that signs is wrong: set it' ;;
        AccessDenied*kms:*)
            printf '; these credentials may not use the key that encrypts the bucket: grant kms:Decrypt on it' ;;
        AccessDenied*) printf '; these credentials may not: grant s3:GetObject on it, or choose others with [s3] profile' ;;
        SlowDown* | ServiceUnavailable* | InternalError*) printf '; S3 asks for less at once: run the same again later' ;;
        PermanentRedirect* | TemporaryRedirect* | Authorization*region* | IllegalLocation*)
            printf '; the bucket is in another region: set [s3] region' ;;
        Authorization*) printf %s "$ours" ;;
        NoSuchKey*) printf '; it was removed after it was listed: run the same again' ;;
        InvalidObjectState*) printf '; it is archived: restore it first (aws s3api restore-object)' ;;
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
    if sys.argv[2]:
        request.add_header("If-Match", sys.argv[2])
    if login:
        login = base64.b64encode(urllib.parse.unquote_to_bytes(login)).decode()
        request.add_unredirected_header("Authorization", "Basic " + login)
    with urllib.request.urlopen(request, timeout=60) as response, open(sys.argv[1], "wb") as body:
        status = response.status
        with open("fetch.headers", "w") as headers:
            headers.write("HTTP/1.1 %d\n%s" % (status, response.headers))
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
' "$2" "$if_match" 2> fetch.error
}

# What answered last is what was listed, as far as it says so.
is_listed() {
    local line said=
    [[ $etag && -f fetch.headers ]] || return 0
    while IFS= read -r line; do
        line=${line%$'\r'}
        case ${line,,} in
            http/*) said= ;;
            etag:*) [[ $etag == *GMT ]] || said=${line#*:} ;;
            last-modified:*) [[ $etag == *GMT ]] && said=${line#*:} ;;
        esac
    done < fetch.headers
    bare said "$said"
    [[ ! $said || $said == "$etag" ]]
}

# Set a variable to an ETag or a date without spaces, quotes and the sign of a weak one.
bare() {
    local text=${2#"${2%%[! ]*}"}
    text=${text#W/}
    text=${text#\"}
    printf -v "$1" %s "${text%\"}"
}

# Write a URL's body to a file, from its beginning in each attempt; or if it is a stream, going on
# from where it was, as often as some of it comes.
#     download URL FILE [stream]
download() {
    local url=$1 into=$2 is_stream=${3:-} passed=0 begun='' with said status came code error attempt
    local attempts=${WORKFLOWS_FETCH_ATTEMPTS:-5} backoff_s=${WORKFLOWS_FETCH_BACKOFF_S:-1}
    local wait_s=$backoff_s
    if command -v curl > /dev/null; then with=with_curl
    elif command -v python3 > /dev/null; then with=with_python
    else fail "$shown: this node has neither curl nor python3 to fetch it with" 127
    fi
    for ((attempt = 1; ; attempt++)); do
        code=0
        [[ $is_stream ]] || : > "$into"  # curl need not make a file of an empty answer
        rm -f fetch.headers
        said=$("$with" "$url" "$into" "$passed") || code=$?
        status=${said% *} came=${said#* }
        if ((${status:-0} < 300)) && ! is_listed; then
            fail "$shown: it has changed since it was listed: run the same again"
        fi
        ((code == 0 && ${status:-0} < 300)) && return  # a redirect to nowhere is no success
        ((code == 23)) && [[ $is_stream ]] && exit 1  # nobody reads it any longer: who did says why
        error=$(< fetch.error)
        error=${error//"$url"/"$shown"}
        [[ $said ]] || error="$with was killed"
        ((${status:-0} >= 300)) && error="HTTP status $status"
        # What began to come may have been passed on, even if curl counts none of it. Only of a known
        # size is it certain, in the end, that all bytes came and none twice.
        if [[ $is_stream && ( ! $said || $status == [23]?? ) ]]; then
            begun=yes
            ((passed += ${came:-0}))
            ((${came:-0} > 0)) && attempt=1 wait_s=$backoff_s
            [[ $with == with_curl && $status == 2?? && $size ]] || break
            ((passed < size)) || break
        fi
        [[ $status == 412 && $if_match ]] && error="it has changed since it was listed: run the same again"
        [[ $status == 403 && ! $is_signed ]] && error+=": too many requests, or there is no such file"
        case $code:$status in
            # 3 no URL, 23 the disk is full, 33 it cannot go on, 47 redirects without end, 60 a bad
            # certificate: the same next time.
            22:408 | 22:429 | 22:5??) ;;
            22:403) [[ $is_signed ]] && break ;;
            0:* | 22:* | 3:* | 23:* | 33:* | 36:* | 47:* | 60:*) break ;;
        esac
        ((attempt < attempts)) || break
        sleep "$wait_s"
        wait_s=$((wait_s * 2))
    done
    if [[ $is_signed ]] && ((${status:-0} >= 300)); then
        said=''
        [[ $with == with_curl ]] && said=$(s3_says "$url")
        [[ $said || $status != 403 ]] || said=': access denied, or the URL has expired'
        error+=$said
    fi
    error=${error:-failed}
    ((passed)) && error+=", after $passed bytes"
    [[ $begun ]] && fail "$shown: $error (attempt $attempt of $attempts)" "$AGAIN"
    fail "$shown: $error (attempt $attempt of $attempts)"
}

# Pass a URL's body on as it comes.
stream() {
    local codes
    set +e
    download "$1" /dev/fd/3 stream 3>&1 2> fetch.said | pass_on 2> fetch.refused
    codes=("${PIPESTATUS[@]}")
    set -e
    # What comes need not be what was asked for, and is refused then, too: the first trouble counts.
    if ((codes[0])) && [[ -s fetch.said ]]; then
        cat fetch.said >&2
        exit "${codes[0]}"
    fi
    if ((codes[1])); then
        if [[ -s fetch.refused ]]; then cat fetch.refused >&2
        elif ((codes[1] < 128)); then printf 'fetch: %s: failed without a word: is the disk full?\n' "$shown" >&2
        fi
        exit "${codes[1]}"
    fi
    ((codes[0] == 0)) || fail "$shown: failed without a word: is the disk full?" "${codes[0]}"
    [[ -s fetch.start ]] || check_start fetch.start  # nothing came: that is not always allowed
    if [[ $size ]]; then
        local first rest
        first=$(count_of fetch.first)
        rest=$(count_of fetch.rest)
        check_size $((first + rest))
    fi
}

# Pass stdin on, once it begins as its name promises; leave how many bytes there were, how they end,
# and their MD5 where the ETag is one, in fetch.first and .rest, fetch.end and fetch.md5.
pass_on() {
    dd bs=1 count=200 of=fetch.start 2> fetch.first || fail "$shown: cannot write fetch.start"
    [[ -s fetch.start ]] && check_start fetch.start
    # To tee, stdout is one more file: a pipe between commands, or the key's, which is only appended to.
    case $is_md5:${name,,} in
        yes:*.parquet) { { counted | tee -a /dev/fd/3 /dev/fd/4 | md5sum > fetch.md5; } 4>&1 | tail -c 4 > fetch.end; } 3>&1 ;;
        yes:*) { counted | tee -a /dev/fd/3 | md5sum > fetch.md5; } 3>&1 ;;
        *.parquet) { counted | tee -a /dev/fd/3 | tail -c 4 > fetch.end; } 3>&1 ;;
        *) counted ;;
    esac
}

# The bytes that were looked at, and the rest.
counted() {
    cat fetch.start && dd bs=262144 2> fetch.rest
}

# Print how many bytes dd says it copied.
count_of() {
    local line last=
    while IFS= read -r line; do last=$line; done < "$1"
    [[ $last =~ ^[0-9]+ ]] || fail "$shown: dd does not say how many bytes there were: $last"
    printf %s "${BASH_REMATCH[0]}"
}

check_size() {
    (($1 == size)) || fail "$shown: came with $1 of $size bytes" "$AGAIN"
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
    [[ $is_md5 ]] || return 0
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
        name=${filename:-${shown##*/}} size=${WORKFLOWS_SIZE:-} is_signed='' is_md5='' if_match=''
        bare etag "${WORKFLOWS_ETAG:-}"
        if [[ $source == *[?\&]X-Amz-Signature=* ]]; then
            is_signed=yes
            [[ $etag =~ ^[0-9a-f]{32}$ ]] && is_md5=yes
            [[ ! $etag || $etag == *GMT || ${WORKFLOWS_ETAG:-} == W/* ]] || if_match="\"$etag\""
        fi
        files=(fetch.said fetch.refused fetch.error fetch.headers fetch.start fetch.first fetch.rest)
        files+=(fetch.end fetch.md5)
        rm -f "${files[@]}"
        if [[ $etag ]]; then
            stream "$source"
            check_end fetch.end
            check_md5
        else
            download "$source" fetch.body
            [[ ! $size ]] || check_size "$(wc -c < fetch.body)"
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
