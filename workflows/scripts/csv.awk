# CSV for the awk scripts beside this one:  awk -f csv.awk -f SCRIPT.awk -- ARGUMENT...
#
# Promise: records are read and written as RFC 4180 and Python's csv module do it: quoted fields with
# commas, doubled quotes and newlines inside, CRLF or LF, with or without a final newline.
# Runs the same in mawk 1.3.4, gawk, busybox awk and original-awk, given LC_ALL=C.

# The fields of the record that starts with `line`, or the first `limit` of them; their number. It
# reads on while a quote is open, and gives 0 if the input was cut off inside a quote of its last line.
# A quote that swallows whole lines and is never closed is refused: nobody can tell how many rows.
function csv_read(line, fields, limit,    n, at, value, first) {
    first = NR
    for (n = 0; !limit || n < limit; line = substr(line, at + 1)) {
        value = ""
        if (substr(line, 1, 1) == "\"") {
            line = substr(line, 2)
            while (!(at = index(line, "\"")) || substr(line, at + 1, 1) == "\"") {
                if (at) {  # a doubled quote
                    value = value substr(line, 1, at)
                    line = substr(line, at + 2)
                    continue
                }
                value = value line "\n"
                # The csv module's limit. Appending copies, so without one a stray quote takes hours.
                if (length(value) > 131072) fail("the quote opened in line " first " is not closed within 128 KiB", 4)
                if ((getline line) > 0) continue
                if (NR > first) fail("the quote opened in line " first " is never closed", 4)
                return 0
            }
            value = value substr(line, 1, at - 1)
            line = substr(line, at + 1)
        }
        if (!(at = index(line, ","))) {
            if (substr(line, length(line)) == "\r") line = substr(line, 1, length(line) - 1)
            fields[++n] = value line
            return n
        }
        fields[++n] = value substr(line, 1, at - 1)
    }
    return n
}

# Read the header: its fields, their number, and the text itself in CSV_HEADER; 0 for an empty input.
function csv_header(fields,    line, n) {
    CSV_HEADER = ""
    while ((getline line) > 0) {
        if (NR == 1 && substr(line, 1, 3) == "\357\273\277") line = substr(line, 4)  # UTF-8 BOM
        if (line ~ /[^ \t\r]/) {
            CSV_HEADER = line
            if (!(n = csv_read(line, fields, 0))) fail("the header ends inside a quote: " shown(CSV_HEADER), 4)
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
