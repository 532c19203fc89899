"""How many rows the model is given at once.

Batch size matters more than anything else: for a 10→128→1 model on 2 cores, 32 rows score 14 thousand
rows/s, 16,384 score 5.4 million, and 65,536 fall back to 2.4 million because they leave the cache. So
``auto`` measures on the first real batch, once per loaded model, and remembers.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

# Powers of four up to where the gain is spent, then of two around the optimum.
CANDIDATE_ROWS = (64, 256, 1024, 4096, 8192, 16384, 32768, 65536)
# Below this there is too little to time: the rows go through as one batch.
_FEWEST_ROWS = 1024
# A larger batch must beat a smaller one by this much, or the smaller one stays: it needs less memory, and
# leaves more of the cache to the other threads, which stand still while this is measured.
_WORTHWHILE = 1.1
_REPEATS = 3
# One try is enough of what takes so long, and is fast; to be slow it must take that long each time, since a
# thread that fetches or decodes may have held the interpreter meanwhile.
_LONG_S = 0.02
_VERY_LONG_S = 0.1
_BUDGET_S = 2.0


class BatchSize:
    """The batch size of one loaded model, in rows; shared by the threads that use it."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._rows = 0
        self._row_cells = 1
        self._tried_rows = 0
        self._memory_rows = 0
        self._memory_cells = 0

    def choose(self, available_rows: int, predict: Callable[[int], object], row_cells: int = 1) -> int:
        """Return the batch size to use, measuring first where that has not been done.

        Args:
            available_rows: rows at hand for the measurement.
            predict: predicts that many of the rows at hand; its result is thrown away. A number of rows at
                which it raises ends the search, and is not chosen.
            row_cells: how many values a row has, where that differs from row to row: of rows of twice as
                many, half as many are a batch.
        """
        with self._lock:
            # Four times more rows than were ever tried can show another optimum.
            if available_rows >= max(_FEWEST_ROWS, 4 * self._tried_rows) and not self._settled:
                self._rows = self._measure(available_rows, predict)
                self._tried_rows, self._row_cells = available_rows, row_cells
            if not self._rows:
                return self.within(max(available_rows, 1), row_cells)
            if row_cells == self._row_cells:
                return self.within(self._rows, row_cells)
            return self.within(max(CANDIDATE_ROWS[0], self._rows * self._row_cells // row_cells), row_cells)

    def within(self, rows: int, row_cells: int = 1) -> int:
        """Return ``rows``, or fewer where so many did not fit the memory before."""
        return min(rows, max(1, self._memory_cells // 2 // row_cells)) if self._memory_cells else rows

    def shrink(self, rows: int, row_cells: int = 1) -> None:
        """Remember that ``rows`` did not fit the memory: half of them is the most from now on."""
        self._memory_rows = min(rows, self._memory_rows or rows)
        self._memory_cells = min(rows * row_cells, self._memory_cells or rows * row_cells)

    @property
    def memory_rows(self) -> int:
        """Return the smallest batch that did not fit the memory so far, in rows; 0 where all did."""
        return self._memory_rows

    @property
    def _settled(self) -> bool:
        return self._tried_rows >= CANDIDATE_ROWS[-1]

    def _measure(self, available_rows: int, predict: Callable[[int], object]) -> int:
        best_rows, best_rate, worse = CANDIDATE_ROWS[0], 0.0, 0
        with contextlib.suppress(Exception):
            predict(best_rows)
        begin = self._clock()
        for rows in CANDIDATE_ROWS:
            if rows > available_rows or worse == 2 or self._clock() - begin > _BUDGET_S:
                break
            try:
                wanted_s = rows / (best_rate * _WORTHWHILE) if best_rate else float("inf")
                rate = rows / max(self._fastest_s(rows, predict, wanted_s), 1e-9)
            except Exception:  # noqa: BLE001 - too large for the memory, or a row that the scoring loop will name
                break
            if rate > best_rate * _WORTHWHILE:
                best_rows, best_rate, worse = rows, rate, 0
            else:
                worse += 1
        return best_rows

    def _fastest_s(self, rows: int, predict: Callable[[int], object], wanted_s: float) -> float:
        fastest = float("inf")
        for _ in range(_REPEATS):
            begin = self._clock()
            predict(rows)
            fastest = min(fastest, self._clock() - begin)
            if fastest > (_LONG_S if fastest < wanted_s else _VERY_LONG_S):
                break
        return fastest
