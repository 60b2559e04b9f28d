# How often each row of a CSV file occurs.
#
#   awk -f csv.awk -f count_rows.awk < FILE > FILE
#
# Promise: one line `value,count` (`value,value,count` of a file with two columns) per distinct row, in
# the order of their first appearance, without a header. Blanks around a value and a CR do not count,
# 1.0 is 1 (1.50 stays), and a blank value is a value: `,2150`. A row with more or fewer values than
# the header is rejected. Same input, same bytes, in every awk.
# Metrics: rows_in = rows_counted + rows_rejected.

BEGIN {
    SCRIPT = "count_rows"
    FS = "\n"  # nothing is split while counting
    columns = csv_header(HEADER)
}

# Rows are counted as they stand, and cleaned in END: distinct rows are few.
# (Not `for (row in COUNT)`: every awk has an order of its own.)
index($0, "\"") { count_quoted(); next }
!COUNT[$0]++ { ROWS[++distinct] = $0 }

END {
    if (FAILED) exit FAILED
    for (i = 1; i <= distinct; i++) add(ROWS[i], COUNT[ROWS[i]])
    for (i = 1; i <= values; i++) printf "%s%.0f\n", VALUES[i], TOTAL[VALUES[i]]
    metric("rows_in", rows_counted + rows_rejected)
    metric("rows_counted", rows_counted)
    metric("rows_rejected", rows_rejected)
}

function count_quoted(    n, row) {
    if ((n = csv_read($0, FIELD, 0))) {
        row = csv_row(FIELD, n)
        if (!COUNT[row]++) ROWS[++distinct] = row
    } else rows_rejected++
}

function add(row, count,    i, n, value) {
    # In a file of one column an empty line is a blank value, so that counts add up after cut, too.
    if (columns > 1 && csv_is_blank(row, columns)) return
    if ((n = csv_read(row, FIELD, 0)) != columns) { rows_rejected += count; return }
    for (i = 1; i <= n; i++) FIELD[i] = clean(FIELD[i])
    FIELD[n + 1] = ""
    value = csv_row(FIELD, n + 1)  # ends with the comma before the count
    rows_counted += count
    if (!(value in TOTAL)) VALUES[++values] = value
    TOTAL[value] += count
}

function clean(value) {
    gsub(/^[ \t\r]+|[ \t\r]+$/, "", value)
    if (value ~ /^[-+]?[0-9]+\.0+$/) sub(/\.0+$/, "", value)
    return value
}
