"""Fake taxi rides as CSV on stdout: any number of rows, always the same ones.

python3 -m workflows.pipelines.classify.generate ROWS [--seed 1] > rides.csv
"""

import argparse
import datetime as dt
import random
import sys
from collections.abc import Iterator

HEADER = (
    "vendor_id,pickup_datetime,dropoff_datetime,passenger_count,trip_distance,rate_code_id,"
    "payment_type,fare_amount,tip_amount,total_amount"
)
_START = dt.datetime(2018, 1, 1)
_MINUTES_A_YEAR = 365 * 24 * 60


def rides(rows: int, seed: int) -> Iterator[str]:
    """Yield that many rows; more rows of one seed begin with fewer rows of it."""
    # Only random(): what it returns for a seed is the one promise Python makes for all versions.
    draw = random.Random(seed).random  # noqa: S311 - to be the same, not secret
    for _ in range(rows):
        pickup = _START + dt.timedelta(seconds=int(draw() * _MINUTES_A_YEAR) * 60)
        hundredths = int(150 * draw() / (1.02 - draw()))  # miles; many short rides, few long ones
        seconds = 60 + int(hundredths * (1 + 3 * draw()))
        rate = 2 if draw() < 0.02 else 1
        cents = 250 + 2 * hundredths + seconds // 2
        if draw() < 0.005:
            cents = -cents
        tip = int(cents * draw() * 0.3) if cents > 0 else 0
        people = 1 + int(draw() ** 3 * 6)
        miles = "" if draw() < 0.002 else f"{hundredths / 100:.2f}"
        dropoff = pickup + dt.timedelta(seconds=seconds)
        yield (
            f"{1 + int(draw() * 2)},{pickup},{dropoff},{people},{miles},{rate},"
            f"{1 + int(draw() * 2)},{cents / 100:.2f},{tip / 100:.2f},{(cents + tip) / 100:.2f}"
        )


def main() -> None:
    """Write the rows that the command line asks for."""
    parser = argparse.ArgumentParser(description="Seeded taxi rides as CSV.")
    parser.add_argument("rows", type=int)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    out = sys.stdout
    out.write(HEADER + "\n")
    out.writelines(row + "\n" for row in rides(chosen.rows, chosen.seed))


if __name__ == "__main__":
    main()
