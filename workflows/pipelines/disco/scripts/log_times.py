"""When a line of a log was written, as the line itself says."""

import re

_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
# 2018-01-11 18:24:44 or 2018-01-11T18:24:44Z, as most programs write it ...
_ISO = re.compile(r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):\d\d")
# ... and 11/Jan/2018:18:24:44 +0000, as web servers do.
_WEB = re.compile(r"(\d\d)/([A-Z][a-z]{2})/(\d{4}):(\d\d):\d\d")


def part_of_time(line: str, part: str) -> str:
    """Return the hour of the day, the day or the month of the first time in a line, or "none"."""
    found = _ISO.search(line)
    if found:
        year, month, day, hour = found.groups()
    else:
        found = _WEB.search(line)
        if not found or found[2] not in _MONTHS:
            return "none"
        day, name, year, hour = found.groups()
        month = f"{_MONTHS.index(name) + 1:02d}"
    return {"hour": hour, "day": f"{year}-{month}-{day}", "month": f"{year}-{month}"}[part]
