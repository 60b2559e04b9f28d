# CSV for the awk scripts beside this one:  awk -f csv.awk -f SCRIPT.awk -- ARGUMENT...
#
# Promise: records are read and written as RFC 4180 and Python's csv module do it: quoted fields with
# commas, doubled quotes and newlines inside, CRLF or LF, with or without a final newline.
# Runs the same in mawk 1.3.4, gawk, busybox awk and original-awk, given LC_ALL=C.

# The fields of one record, or the first `limit` of them; their number, or 0 if a quote is left open.
function csv_fields(record, fields, limit,    n, at, value) {
    if (substr(record, length(record)) == "\r") record = substr(record, 1, length(record) - 1)
    record = record ","
    n = 0
    while (record != "" && (!limit || n < limit)) {
        value = ""
        if (substr(record, 1, 1) == "\"") {
            record = substr(record, 2)
            while ((at = index(record, "\"")) && substr(record, at + 1, 1) == "\"") {
                value = value substr(record, 1, at)
                record = substr(record, at + 2)
            }
            if (!at) return 0
            value = value substr(record, 1, at - 1)
            record = substr(record, at + 1)
        }
        at = index(record, ",")
        fields[++n] = value substr(record, 1, at - 1)
        record = substr(record, at + 1)
    }
    return n
}

# The fields of the record that starts with `line`, reading on while a quote is open; 0 if the input
# was cut off inside a quote of its last line. A quote that swallows whole lines and is never closed
# is refused: nobody can tell how many rows are in there.
function csv_read(line, fields,    n, more, first) {
    first = NR
    while (!(n = csv_fields(line, fields, 0)))
        do {
            if ((getline more) <= 0) {
                if (NR == first) return 0
                fail("the quote opened in line " first " is never closed", 4)
            }
            line = line "\n" more
            # Appending copies, so without a limit one stray quote in a big file takes hours.
            if (length(line) > 1048576) fail("the record of line " first " is longer than 1 MiB: a stray quote?", 4)
        } while (!index(more, "\""))
    return n
}

# Read the header: its fields, their number, and the text itself in CSV_HEADER; 0 for an empty input.
function csv_header(fields,    line, n) {
    CSV_HEADER = ""
    while ((getline line) > 0) {
        if (NR == 1 && substr(line, 1, 3) == "\357\273\277") line = substr(line, 4)  # UTF-8 BOM
        if (line ~ /[^ \t\r]/) {
            CSV_HEADER = line
            if (!(n = csv_read(line, fields))) fail("the header ends inside a quote: " shown(line), 4)
            return n
        }
    }
    return 0
}

# A line of nothing but blanks is no row, unless it may be the blank value of a single column.
function csv_is_blank(line, columns) {
    return columns > 1 ? line !~ /[^ \t\r]/ : line == "" || line == "\r"
}

# The fields 1 to n as one record. A single empty field is written "", an empty line being no row.
function csv_row(fields, n,    i, value, row) {
    for (i = 1; i <= n; i++) {
        value = fields[i]
        if (value ~ /[",\r\n]/) {
            gsub(/"/, "\"\"", value)
            value = "\"" value "\""
        }
        row = i == 1 ? value : row "," value
    }
    return row == "" ? "\"\"" : row
}

# Column names are compared without case, and without the blanks and quotes around them.
function csv_name(text) {
    gsub(/^[ \t\r\n"]+|[ \t\r\n"]+$/, "", text)
    return tolower(text)
}

# Add one line to the key's metrics. Not print: mawk writes 2.14748e+09 from 2^31 on, %d clamps there.
function metric(name, value) {
    if (ENVIRON["WORKFLOWS_METRICS"] != "") printf "%s=%.0f\n", name, value >> ENVIRON["WORKFLOWS_METRICS"]
}

# Data as it may stand in a message: one line, no control characters, not endless.
function shown(text) {
    gsub(/[[:cntrl:]]/, "?", text)
    return length(text) > 500 ? substr(text, 1, 500) "..." : text
}

# End with a message. END still runs after exit, so each END begins with: if (FAILED) exit FAILED
function fail(message, status) {
    # Not /dev/stderr, which busybox opens (and so truncates) when stderr is a file.
    print SCRIPT ": " message | "cat 1>&2"
    close("cat 1>&2")
    exit FAILED = status
}
