"""Read every notebook in a real Jupyter kernel, as a reader does: `make book`.

An exception, a cell that doesn't end, a warning, or an output that was saved with other packaged
weights than today's fails the run. The notebooks stay as they are. nbs/checks/read_through.ipynb
explains why, and tests this file.
"""

import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from checksums import stamps

SKIPPED = re.compile(r'^#\|\s*(eval:\s*false|slow|cuda|notest)\b|nbdev_export\(', re.M)


def stumbles(nb) -> list:
    "Each exception and each thing on stderr among a notebook's outputs, with the id of its cell."
    outputs = [(c.id, o) for c in nb.cells if c.cell_type == 'code' for o in c.outputs]
    errors = [f'{i}: {o.ename}: {o.evalue}' for i, o in outputs if o.output_type == 'error']
    return errors + [
        f'{i}: on stderr: {o.text.strip()}'
        for i, o in outputs
        if o.output_type == 'stream' and o.name == 'stderr'
    ]


def prepare(nb, wanted=()):
    "Drop the saved outputs, and tag the cells that are left out, but for those that are wanted."
    for cell in nb.cells:
        if cell.cell_type == 'code':
            cell.outputs = []
            if SKIPPED.search(cell.source) and cell.id not in wanted:
                cell.metadata['tags'] = ['left-out']


def changed_weights(nb, saved) -> list:
    "A sentence for each cell that ran and names other weights than `saved` (cell id -> stamps)."
    return [
        f'{c.id}: saved with weights {sorted(saved[c.id])}, and now made with {sorted(stamps(c))}'
        for c in nb.cells
        if saved.get(c.id) and c.metadata.get('tags') != ['left-out'] and stamps(c) != saved[c.id]
    ]


def run(nb, folder, timeout):
    "Run the cells of a notebook that are not left out, in a fresh kernel that starts in `folder`."
    client = NotebookClient(
        nb,
        timeout=timeout,  # seconds a cell may take
        kernel_name='python3',
        resources=dict(metadata=dict(path=str(folder))),
        skip_cells_with_tag='left-out',
        extra_arguments=['--log-level=50'],  # the kernel's own log is not for readers
    )
    client.execute()


def read_notebook(file, timeout=900) -> list:
    "Run a notebook in its own folder. Gives sentences on what it stumbles over."
    nb = nbformat.read(file, 4)
    saved = {c.id: stamps(c) for c in nb.cells}
    prepare(nb)
    try:
        run(nb, Path(file).parent, timeout)
    except CellExecutionError:
        return stumbles(nb)  # the error is among the outputs
    except (CellTimeoutError, DeadKernelError) as e:
        return [*stumbles(nb), f'{type(e).__name__}: {str(e).splitlines()[0]}']
    return stumbles(nb) + changed_weights(nb, saved)


def notebooks(folder) -> list:
    "The chapters in `folder`, then the notebooks of its folders, but for hidden ones."
    found = [f for f in Path(folder).rglob('[!_.]*.ipynb') if '.ipynb_checkpoints' not in f.parts]
    return sorted(found, key=lambda f: (len(f.parts), f))


def read_book(files):
    "`read_notebook` for each file, with its seconds. The exit status is 1 if one stumbled."
    bad = 0
    for file in files:
        start = time.time()
        trouble = read_notebook(file)
        seconds = f'{time.time() - start:4.0f} s'
        print(f'{str(file):40} {seconds}', *trouble, sep='\n    ', flush=True)
        bad += bool(trouble)
    if bad or not files:
        raise SystemExit(f'{bad} of {len(files)} notebooks stumbled.')
    print(f'{len(files)} notebooks read in a Jupyter kernel, without an error or a warning.')


if __name__ == '__main__':
    arguments = [Path(a) for a in sys.argv[1:]] or [Path('nbs')]
    read_book([f for a in arguments for f in (notebooks(a) if a.is_dir() else [a])])
