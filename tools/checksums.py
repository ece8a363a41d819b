"""Check by a short checksum which weights made a saved output or a table of results.

A saved output made with packaged weights names them in its caption, as `faces ff87361e5f98`: the
name of the file and the first twelve hex digits of its sha256. A table in nbs/reports/results has a
row in made_with.csv, which `make stamp TABLES=faces_scores.csv` writes after a new measurement.
nbs/checks/house_rules.ipynb explains why, and tests this file.
"""

import csv
import hashlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'nbs' / 'reports' / 'results'
# Also `faces.safetensors (sha256 …)`, as commands print it, and name and sha256 in JSON.
STAMP = re.compile(r'\b(faces|challenge)(?:\.safetensors)?\W{1,12}(?:sha256\W{1,6})?([0-9a-f]{12})')


def short(file):
    "The first twelve hex digits of a file's sha256."
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]


def packaged(folder=ROOT / 'face_future' / 'weights'):
    "The short checksum of each packaged weights file, by its name."
    return {file.stem: short(file) for file in sorted(Path(folder).glob('*.safetensors'))}


def output_text(cell):
    "All text that a cell's saved outputs show, as one string."
    parts = []
    for output in cell.get('outputs', []):
        shown = [output.get('text', '')]
        shown += [v for k, v in output.get('data', {}).items() if k.startswith('text/')]
        parts += [''.join(part) for part in shown]
    return '\n'.join(parts)


def stamps(cell):
    "The (name, short checksum) pairs that a cell's saved outputs name, as a set."
    return set(STAMP.findall(output_text(cell)))


def read_ledger(results=RESULTS):
    "The rows of made_with.csv, by the name of the table."
    with open(Path(results) / 'made_with.csv', newline='', encoding='utf-8') as file:
        return {row['table']: row for row in csv.DictReader(file)}


def write_ledger(rows, results=RESULTS):
    "Write made_with.csv, sorted by the name of the table."
    with open(Path(results) / 'made_with.csv', 'w', newline='', encoding='utf-8') as file:
        columns = ['table', 'table_sha', 'weights', 'weights_sha']
        writer = csv.DictWriter(file, columns, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows[name] for name in sorted(rows))


def stamp_table(table, weights='faces', results=RESULTS, known=None):
    "Record that `table` was just measured with the packaged `weights`."
    known = known or packaged()
    rows = read_ledger(results) if (Path(results) / 'made_with.csv').exists() else {}
    rows[table] = dict(
        table=table,
        table_sha=short(Path(results) / table),
        weights=weights,
        weights_sha=known[weights],
    )
    write_ledger(rows, results)


def outdated(tables, results=RESULTS, known=None):
    "Why a table can't be trusted to come from today's weights, by the name of the table."
    known = known or packaged()
    rows = read_ledger(results)
    why = {}
    for table in tables:
        row = rows.get(table)
        if row is None:
            why[table] = 'no row in made_with.csv'
        elif row['table_sha'] != short(Path(results) / table):
            why[table] = 'changed since it was stamped'
        elif row['weights_sha'] != known.get(row['weights']):
            why[table] = f'made with other weights ({row["weights_sha"]})'
    return why


if __name__ == '__main__':
    weights, *tables = sys.argv[1:]
    for table in tables:
        stamp_table(table, weights)
        print(f'{table}: {weights} {packaged()[weights]}')
