"""Make saved outputs anew: `make refresh`, or `make refresh NOTEBOOK=nbs/x.ipynb CELLS="a b"`.

A saved output names the packaged weights that it was made with. After a change of the weights, this
runs each notebook that has an output of other weights, and saves those outputs anew; `make refresh`
does so for all notebooks. Cells that are named are run and saved whatever they print, those flagged
`slow` as well. All other saved outputs stay as they are. nbs/checks/read_through.ipynb explains
more, and tests this file.
"""

import sys
from pathlib import Path

import nbformat
from nbclient.exceptions import CellExecutionError

from checksums import packaged, stamps
from read_through import SKIPPED, notebooks, prepare, run, stumbles

HOUR = 3600


def stale(nb, known) -> set:
    "The ids of cells with an output that names other weights than `known` (name -> checksum)."
    return {
        c.id
        for c in nb.cells
        if c.cell_type == 'code' and any(known.get(n) != sha for n, sha in stamps(c))
    }


def left(nb, ids) -> set:
    "Those of the cells `ids` that only run when they are named."
    return {c.id for c in nb.cells if c.id in ids and SKIPPED.search(c.source)}


def refresh(file, ids) -> None:
    "Run a notebook and save the outputs of the cells `ids`. If a cell fails, the file stays as is."
    saved = nbformat.read(file, 4)
    unknown = set(ids) - {c.id for c in saved.cells}
    if unknown:
        raise SystemExit(f'{file}: has no cell {", ".join(sorted(unknown))}.')
    made = nbformat.read(file, 4)
    prepare(made, ids)
    try:
        run(made, Path(file).parent, HOUR)
    except CellExecutionError:
        raise SystemExit('\n'.join([f'{file}: nothing was saved.', *stumbles(made)])) from None
    outputs = {c.id: c.outputs for c in made.cells if c.id in ids}
    for cell in saved.cells:
        if cell.id in ids:
            cell.outputs = outputs[cell.id]
    part = Path(file).with_suffix('.part')
    nbformat.write(saved, part)
    part.replace(file)
    print(f'{file}: {", ".join(sorted(ids))}', flush=True)


def refresh_all(folder, known) -> None:
    "Save the outputs of other weights anew in every notebook of a folder."
    for file in notebooks(folder):
        nb = nbformat.read(file, 4)
        ids = stale(nb, known)
        if slow := left(nb, ids):
            print(f'{file}: {", ".join(sorted(slow))} must be named, for they take long.')
        if ids - slow:
            refresh(file, ids - slow)


if __name__ == '__main__':
    file, *ids = sys.argv[1:] or ['nbs']
    if Path(file).is_dir():
        refresh_all(file, packaged())
    else:
        refresh(file, set(ids) or stale(nbformat.read(file, 4), packaged()))
