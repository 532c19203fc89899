"""``python -m benchmarks.receipts OUTPUT``: how long it takes to read the receipts of an unfinished run.

As a resumed run reads them: each is looked up by its split, and its attempt must be there. Prints the
seconds, and how many there were; exit code 1 says that a split has none.
"""

from __future__ import annotations

import sys
import time

from job import storage
from job.commit import output, staging


def main() -> int:
    """Read every receipt of every run that an output's staging holds."""
    folder = sys.argv[1]
    begin = time.perf_counter()
    read = missing = 0
    for run in output.leftovers(folder, ""):
        for split in staging.read_plan(storage.join(staging.folder_of(folder, run), staging.PLAN)):
            found = staging.read_receipt(folder, run, split)
            read, missing = read + (found is not None), missing + (found is None)
    print(time.perf_counter() - begin, read)
    return 0 if read and not missing else 1


if __name__ == "__main__":
    sys.exit(main())
