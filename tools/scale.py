"""Measure batches on Ray: `python tools/scale.py rate PICTURES`, or `kills PICTURES`.

PICTURES is a folder of photographs, each of which is taken several times, under other names. `rate`
runs `predict` and Ray with two workers and with one in turn, and takes the rate between the first
finished part and the last, so that the start doesn't count. `kills` ends workers and the driver
with SIGKILL at random moments, continues until all pictures are predicted, and compares the rows
that were written with the pictures that were asked for. Both write a table into
nbs/reports/results, or to --out.
"""

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from face_future.batch import RAY_ENVIRONMENT

RESULTS = Path(__file__).resolve().parents[1] / 'nbs' / 'reports' / 'results'
ALONE = """
import json, sys, time
from face_future.backends import cpu_threads
from face_future.tta_inference import Predictor, predict_files
files = open(sys.argv[1]).read().splitlines()
predictor = Predictor(streams=cpu_threads(), views='single')
seen = []

def keep(rows):
    seen.append((time.time(), len(rows), time.process_time()))

predict_files(predictor, files, bs=8, keep=keep)
"""
RAY = """
import sys
from face_future.batch import predict_on_ray
workers, shard = map(int, sys.argv[3:5])
address = sys.argv[5] if len(sys.argv) > 5 else None
given = dict(workers=workers, shard=shard, address=address, views='single')
print(predict_on_ray(sys.argv[1], sys.argv[2], **given))
"""
CLUSTER = """
import time
from face_future.batch import start_ray
start_ray()
import ray
print(ray.get_runtime_context().gcs_address, flush=True)
time.sleep(1e6)
"""


def table(folder, n, place) -> Path:
    "A table of `n` pictures: those of the folder again and again, under other names."
    import pyarrow as pa

    files = [f for f in sorted(Path(folder).rglob('*')) if f.suffix.lower() in ('.jpg', '.png')]
    random.Random(0).shuffle(files)
    files = files[: min(len(files), max(1, n // 2))]
    rows = [(f'{k}-{files[k % len(files)].name}', str(files[k % len(files)])) for k in range(n)]
    ids, paths = zip(*rows, strict=True)
    pq.write_table(pa.table(dict(id=ids, path=paths)), place / 'pictures.parquet')
    (place / 'pictures.txt').write_text('\n'.join(dict.fromkeys(paths)))
    return place / 'pictures.parquet'


def memory(process) -> tuple:  # bytes of the predictors, and of all processes
    "Resident memory of a process and its children."
    own, workers = 0, []
    for p in [process, *process.children(recursive=True)]:
        try:
            rss = p.memory_info().rss
            workers += [rss] if is_worker(p) else []
            own += rss
        except psutil.Error:
            pass
    return max(workers, default=0), own


def is_worker(p) -> bool:
    try:
        return any(part.startswith('ray::MapWorker') for part in p.cmdline()[:1])
    except psutil.Error:
        return False


def parts(out) -> list:  # of (time, pictures), in the order of the time
    "When each part was finished."
    found = sorted((f.stat().st_mtime, f) for f in Path(out).glob('predictions/*.parquet'))
    return [(t, pq.read_metadata(f).num_rows) for t, f in found]


def slope(done) -> float:  # pictures a second
    "The rate between the first part that was finished and the last."
    return sum(n for _, n, *_ in done[1:]) / (done[-1][0] - done[0][0])


def processor_time(process) -> float:  # seconds
    "What a process and its children have used."
    total = 0.0
    for p in [process, *process.children(recursive=True)]:
        try:
            total += sum(p.cpu_times()[:2])
        except psutil.Error:
            pass
    return total


def time_alone(files) -> dict:
    "What `predict_files` does, with a stream for each core."
    program = ALONE + 'print(json.dumps(seen))'
    command = [sys.executable, '-c', program, str(files)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    seen = json.loads(ended.stdout.splitlines()[-1])
    used = (seen[-1][2] - seen[0][2]) / sum(n for _, n, _ in seen[1:])
    return dict(how='predict', rate=slope(seen), cpu_ms=1000 * used)


def time_ray(cluster, address, source, workers, shard) -> dict:
    "What Ray does, with the memory after a fifth of the pictures and at the end, in MB."
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, '-c', RAY, str(source), out, str(workers), str(shard), address]
        driver = psutil.Popen(command, stdout=subprocess.DEVNULL)
        total = pq.read_metadata(source).num_rows
        seen, cpu = [], []
        while driver.poll() is None:
            done = len(list(Path(out).glob('predictions/*.parquet'))) * shard
            if done >= total / 5:
                seen.append(memory(cluster))
            if 0 < done < total:
                cpu.append((processor_time(cluster) + processor_time(driver), done))
            time.sleep(0.5)
        if driver.returncode:
            raise SystemExit(f'The driver ended with {driver.returncode}, as it says above.')
        (w0, a0), (w1, a1) = seen[0], max(seen[len(seen) // 2 :])
        last = max(cpu)  # the time of a worker that has ended is no longer counted
        used = (last[0] - cpu[0][0]) / max(1, last[1] - cpu[0][1])
        found = dict(how=f'ray, {workers}', rate=slope(parts(out)), cpu_ms=1000 * used)
        mb = dict(worker_early=w0, worker_late=w1, all_early=a0, all_late=a1)
        return found | {k: round(v / 1e6) for k, v in mb.items()}


@contextmanager
def ray_here():
    "A Ray cluster on this machine: its process and its address."
    os.environ['RAY_AUTH_MODE'] = 'disabled'  # on the loopback, for as long as this takes
    os.environ |= RAY_ENVIRONMENT  # for a driver too, or it takes 127.0.0.1 for the outer address
    cluster = psutil.Popen([sys.executable, '-c', CLUSTER], stdout=subprocess.PIPE, text=True)
    try:
        if not (address := cluster.stdout.readline().strip()):
            raise SystemExit('The cluster did not start, as it says above.')
        yield cluster, address
    finally:
        for process in [*cluster.children(recursive=True), cluster]:
            process.kill()


def rate(folder, n, rounds, shard, workers) -> list:
    "A row for each run, in which the ways take turns."
    with tempfile.TemporaryDirectory() as place, ray_here() as (cluster, address):
        source = table(folder, n, Path(place))
        rows = []
        for k in range(rounds):
            ways = [time_alone(source.with_suffix('.txt'))]
            ways += [time_ray(cluster, address, source, w, shard) for w in workers]
            rows += [dict(round=k, images=n) | way for way in ways]
            print(*rows[-len(ways) :], sep='\n', flush=True)
        return rows


def kill_one(cluster, driver, out, rng) -> str:
    "Kill a worker or the driver, at a random moment after a part was written, and say which."
    who = rng.choice(['worker', 'driver'])
    before = len(parts(out))
    while driver.poll() is None and len(parts(out)) == before:
        time.sleep(0.2)
    time.sleep(rng.uniform(0, 2))
    workers = [p for p in cluster.children(recursive=True) if is_worker(p)]
    if driver.poll() is not None or not workers:
        return ''
    victim = driver if who == 'driver' else rng.choice(workers)
    try:
        victim.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return ''
    return who


def kills(folder, n, wanted, shard, seed) -> list:
    "A row: kills of each kind, and what was lost or doubled."
    rng = random.Random(seed)
    killed, starts = [], 0
    with tempfile.TemporaryDirectory() as place, ray_here() as (cluster, address):
        source = table(folder, n, Path(place))
        out = Path(place) / 'out'
        command = [sys.executable, '-c', RAY, str(source), str(out), '2', str(shard), address]
        while len(parts(out)) * shard < n:
            starts += 1
            driver = psutil.Popen(command, stdout=subprocess.DEVNULL)
            while driver.poll() is None and len(killed) < wanted:
                if who := kill_one(cluster, driver, out, rng):
                    killed.append(who)
                    print(killed, len(parts(out)) * shard, flush=True)
            if driver.wait() > 0:  # by itself, and not by a signal of ours
                raise SystemExit(f'The driver ended with {driver.returncode}, as it says above.')
        want = pq.read_table(source)['id'].to_pylist()
        got = pq.read_table(out / 'predictions')['index'].to_pylist()
    counted = {f'{who} kills': killed.count(who) for who in ('worker', 'driver')}
    lost, doubled = len(set(want) - set(got)), len(got) - len(set(got))
    return [dict(images=n, starts=starts, **counted, lost=lost, doubled=doubled)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('what', choices=['rate', 'kills'])
    parser.add_argument('pictures')
    parser.add_argument('--n', type=int, default=1000)
    parser.add_argument('--rounds', type=int, default=2)
    parser.add_argument('--workers', type=int, nargs='+', default=[2, 1], help='to take turns')
    parser.add_argument('--shard', type=int, default=32)
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, help='table to write')
    a = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster ends too
    if a.what == 'rate':
        rows = rate(a.pictures, a.n, a.rounds, a.shard, a.workers)
    else:
        rows = kills(a.pictures, a.n, a.kills, a.shard, a.seed)
    with (a.out or RESULTS / f'scale_{a.what}.csv').open('w', newline='', encoding='utf-8') as f:
        writer = csv.DictWriter(f, list(dict.fromkeys(k for row in rows for k in row)))
        writer.writeheader()
        writer.writerows(rows)
    print(*rows, sep='\n')


if __name__ == '__main__':
    main()
