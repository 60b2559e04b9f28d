# Chosen columns of a CSV file, found by the names in its header.
#
#   awk -f csv.awk -f select_columns.awk -- passenger_count [NAME...] < FILE > FILE
#
# Promise: a header of the names asked for, then their values, in that order, one line per row. Names
# match without case, blanks, quotes and BOM. Values are unchanged. Blank lines are no rows. A row
# which does not hold every chosen column whole is rejected: it is counted, and not written.
# A name that is missing or ambiguous is never guessed: exit 3. A quote never closed: exit 4.
# Metrics: rows_in = rows_out + rows_rejected.

BEGIN {
    SCRIPT = "select_columns"
    FS = ","
    for (wanted = 1; wanted < ARGC; wanted++) NAMES[wanted] = csv_name(ARGV[wanted])
    wanted--
    ARGC = 1  # what is left is stdin: the arguments are names, not files
    if (!wanted) fail("usage: awk -f csv.awk -f select_columns.awk -- NAME... < FILE", 2)

    header_columns = csv_header(HEADER)
    if (header_columns) for (i = 1; i <= wanted; i++) {
        COLUMN[i] = column_of(NAMES[i])
        if (COLUMN[i] > last) last = COLUMN[i]
    }
    print csv_row(NAMES, wanted)
    first = COLUMN[1]
    width = 16
}

# Nearly all of the time goes into splitting, so only a start of the line is split: `width` bytes, a
# few more after each line whose chosen columns are not all in it. (Not up to that line's need: one
# odd row would spoil it for all others. Not split(): it takes twice as long in gawk and original-awk.)
index($0, "\"") { quoted_row(); next }
{
    line = $0
    $0 = substr(line, 1, width)
    if (NF <= last && !whole_row()) next
    rows_out++
    # length(), because $first == "" makes mawk look for a number in it: a fifth more time.
    print (wanted > 1 ? chosen() : length($first) ? $first : "\"\"")
}

END {
    if (FAILED) exit FAILED
    metric("rows_in", rows_out + rows_rejected)
    metric("rows_out", rows_out)
    metric("rows_rejected", rows_rejected)
}

# Split all of `line`, and say whether it holds the chosen columns; count it if it does not.
function whole_row() {
    if (width < length(line)) {
        width += 4
        $0 = line
        if (NF > last) return 1
    }
    if (csv_is_blank(line, header_columns) || !reaches(NF)) return 0
    # The last field of the line is wanted, so this is where a CRLF shows.
    if (substr(line, length(line)) == "\r") $NF = substr($NF, 1, length($NF) - 1)
    return 1
}

# A row that ends in a chosen column although the header goes on is a line cut off: 1 may have been 12.
function reaches(columns) {
    if (columns > last || columns == last && last == header_columns) return 1
    rows_rejected++
    return 0
}

function chosen(    i, row) {
    row = $first
    for (i = 2; i <= wanted; i++) row = row "," $(COLUMN[i])
    return row
}

# A record that ends in its line, which the regular expression says, needs no parsing beyond the chosen
# columns: in mawk that halves the time of a file with all fields quoted.
function quoted_row(    limit, columns, i) {
    limit = $0 ~ /^([^",]*|"([^"]|"")*")(,([^",]*|"([^"]|"")*"))*\r?$/ ? last + 1 : 0
    columns = csv_read($0, FIELD, limit)
    if (!reaches(columns)) return
    for (i = 1; i <= wanted; i++) VALUE[i] = FIELD[COLUMN[i]]
    rows_out++
    print csv_row(VALUE, wanted)
}

function column_of(name,    i, found) {
    for (i = 1; i <= header_columns; i++) if (csv_name(HEADER[i]) == name) {
        if (found) fail("more than one column '" shown(name) "' in the header: " shown(CSV_HEADER), 3)
        found = i
    }
    if (!found) fail("no column '" shown(name) "' in the header: " shown(CSV_HEADER), 3)
    return found
}
