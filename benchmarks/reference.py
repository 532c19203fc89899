"""The loop to beat: the job's work by hand, without Beam and without any of the job's promises.

Threads take shards from a queue; each reads batches, puts the columns side by side in one buffer,
calls ``predict_on_batch`` and writes one output file per shard, as the job does: float32, zstd, no
dictionary, row groups of 262,144 rows. TensorFlow runs each call on one thread.

Tuned by hand on 2 cores of an Intel Xeon with a warm page cache. Other work ran on the machine, so
choices are compared by rows per second of processor time: the best of four passes over 6 million rows,
taken in turns. Differences below about 5% say nothing. For ``sequential``, in millions:

* batches of 4,096: 2.4; 8,192: 3.3; **16,384: 4.1**; 32,768: 4.0; 65,536: 3.7
* columns copied into **one buffer that is kept: 4.1**; a new array: 3.9; ``column_stack``: 4.0
* **batches from the file: 4.1**; a whole row group, sliced: 4.1; a whole shard, sliced: 4.3
* ``memory_map``: 4.0; ``pre_buffer``: 3.9; Arrow's own threads: 3.9; **none of them: 4.1**
* one thread, with two for TensorFlow and for Arrow: 3.5

So only the batch size and TensorFlow's threads matter. For ``classifier`` not even the batch does: 0.08 to
0.09 for 1,024 to 16,384, because decoding the lists takes most of the time.

The number of threads shows in wall time alone. The whole process on 40 million rows, median of three in
turns: two threads 10.5 s (10.2 to 11.9), **three 10.0 s** (9.8 to 11.8), four 10.2 s (9.5 to 13.1). That is
a tie; one more than cores is the default, as the harder loop to beat.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import queue
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

ROW_GROUP_ROWS = 262_144
BATCH_ROWS = 16_384


def load(path: Path) -> Any:
    """Return the Keras model at ``path``, with TensorFlow at one thread for each call."""
    import keras
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    return keras.models.load_model(path)


def batches(shard: Path, batch_rows: int, width: int) -> Iterator[NDArray[np.float32]]:
    """Yield ``(rows, width) float32``, at most ``batch_rows`` each; valid until the next one is asked for.

    Columns are copied into one buffer that stays; a list column is handed on where it lies.
    """
    buffer = np.empty((batch_rows, width), np.float32)
    for batch in pq.ParquetFile(shard).iter_batches(batch_rows, use_threads=False):
        if pa.types.is_fixed_size_list(batch.schema.types[0]):
            yield batch.column(0).flatten().to_numpy().reshape(batch.num_rows, width)
            continue
        filled = buffer[: batch.num_rows]
        for index, column in enumerate(batch.columns):
            filled[:, index] = column.to_numpy()
        yield filled


def score(model: Any, shard: Path, output: Path, batch_rows: int) -> int:
    """Score one shard into ``output`` and return its rows."""
    width = model.input_shape[-1]
    predicted = np.concatenate([model.predict_on_batch(x) for x in batches(shard, batch_rows, width)])
    flat = pa.array(predicted.reshape(-1))
    column = flat if predicted.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(flat, predicted.shape[1])
    pq.write_table(
        pa.table({"prediction": column}),
        output,
        row_group_size=ROW_GROUP_ROWS,
        compression="zstd",
        use_dictionary=False,
    )
    return len(predicted)


def run(shards: Sequence[Path], model: Any, output: Path, batch_rows: int, threads: int) -> int:
    """Score ``shards`` into the folder ``output`` under their own names; return the rows of all.

    ``model`` has one traced batch behind it: threads that meet an untraced one would each trace it.
    """
    output.mkdir(parents=True, exist_ok=True)
    waiting: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for shard in shards:
        waiting.put(shard)

    def work() -> int:
        rows = 0
        while True:
            try:
                shard = waiting.get_nowait()
            except queue.Empty:
                return rows
            rows += score(model, shard, output / shard.name, batch_rows)

    with ThreadPoolExecutor(threads) as pool:
        return sum(done.result() for done in [pool.submit(work) for _ in range(threads)])


def trace(model: Any, batch_rows: int) -> None:
    """Predict one batch of zeros."""
    model.predict_on_batch(np.zeros((batch_rows, model.input_shape[-1]), np.float32))


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m benchmarks.reference``; 0, or 3 where no shard matches.

    Prints one line of JSON: the rows scored, and when the first batch was predicted, in
    seconds since the epoch.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reference", description="The loop to beat.")
    parser.add_argument("--input", required=True, metavar="GLOB")
    parser.add_argument("--model", required=True, type=Path, metavar="X.keras")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--batch_size", type=int, default=BATCH_ROWS, metavar="ROWS")
    parser.add_argument("--threads", type=int, default=(os.cpu_count() or 1) + 1)
    asked = parser.parse_args(argv)
    shards = [Path(path) for path in sorted(glob.glob(asked.input))]
    if not shards:
        print(f"no shard matches {asked.input}", file=sys.stderr)
        return 3
    model = load(asked.model)
    trace(model, asked.batch_size)
    first_batch_at = time.time()
    rows = run(shards, model, asked.output, asked.batch_size, asked.threads)
    print(json.dumps({"rows": rows, "first_batch_at": first_batch_at}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
