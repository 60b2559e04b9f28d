# The sums of many counts.
#
#   awk -f csv.awk -f merge_counts.awk < CONCATENATED > FILE
#
# Promise: stdin is the output of count_rows.awk, any number of them one after the other. Output is one
# line `value,count` per value: the highest count first, equal counts by the bytes of the value. A sum
# is exact or refused (above 2^53). A line which is no `value,count` is refused: exit 4.
# Metrics: rows_counted, the sum of all counts.

BEGIN {
    SCRIPT = "merge_counts"
    FS = "\n"
}

{
    start = NR
    line = $0
    n = csv_read(line, FIELD, 0)
    # Files glued together without a newline between them show as a line with more values.
    if (!columns) columns = n
    if (n < 2 || n != columns || FIELD[n] !~ /^[0-9]+$/) fail("line " start " is not value,count: " shown(line), 4)
    count = FIELD[n] + 0
    FIELD[n] = ""
    value = csv_row(FIELD, n)
    value = substr(value, 1, length(value) - 1)
    if (!(value in TOTAL)) VALUES[++values] = value
    TOTAL[value] += count
    rows_counted += count
}

END {
    if (FAILED) exit FAILED
    if (rows_counted > 9007199254740992) fail("the counts add up to more than 2^53", 4)
    sort(1, values)
    for (i = 1; i <= values; i++) printf "%s,%.0f\n", VALUES[i], TOTAL[VALUES[i]]
    metric("rows_counted", rows_counted)
}

# Merge sort of VALUES from..to. Not sort(1): values may hold newlines, and that is one more process.
function sort(from, to,    middle, left, right, i) {
    if (from >= to) return
    middle = int((from + to) / 2)
    sort(from, middle)
    sort(middle + 1, to)
    left = from
    right = middle + 1
    for (i = from; i <= to; i++)
        if (right > to || left <= middle && before(VALUES[left], VALUES[right])) SORTED[i] = VALUES[left++]
        else SORTED[i] = VALUES[right++]
    for (i = from; i <= to; i++) VALUES[i] = SORTED[i]
}

function before(a, b) {
    return TOTAL[a] != TOTAL[b] ? TOTAL[a] > TOTAL[b] : (a "") < (b "")
}
