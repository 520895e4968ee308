"""Counts and names images and records that cannot be read, and stops the run if there are too many."""

import hashlib
import sys
import threading

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils

from eca_jax.data.records import Source
from eca_jax.errors import EcaJaxError

_DIGEST_SIZE = 16


class NotTheRecord(Exception):
    """A function of the user's own failed on a record: `cause` is for the user to see, and no record is bad."""

    def __init__(self, cause: Exception):
        super().__init__(str(cause))
        self.cause = cause


class BadRecords:
    """The distinct records that could not be read since the process started; any thread may add one.

    With several processes each knows those that it met itself, until `share` tells it those of the others: from then on
    the limit holds for all together.
    """

    def __init__(self, limit: int = 0):
        self._limit = limit
        self._digests: set[bytes] = set()
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        return len(self._digests)

    def add(self, source: Source, index: int, error: Exception) -> None:
        """Counts and names a record when it is met for the first time.

        Raises:
          EcaJaxError: names the record, where it is one more than the limit.
        """
        key = source.describe(index)
        digest = hashlib.blake2b(key.encode(), digest_size=_DIGEST_SIZE).digest()
        problem = f"cannot read {key}: {' '.join(str(error).split())}"
        with self._lock:
            if digest in self._digests:
                return
            if self.count >= self._limit:
                raise EcaJaxError(f"{problem}; {self._too_many(self.count + 1)}") from error
            self._digests.add(digest)
            tqdm.tqdm.write(f"bad record {self.count} of at most {self._limit}: {problem}", file=sys.stderr)

    def share(self) -> None:
        """Adds the bad records of the other processes; all processes have to call it.

        Raises:
          EcaJaxError: there are more than the limit in all.
        """
        if jax.process_count() == 1 or self._limit == 0:
            return
        with self._lock:
            found = sorted(self._digests)
        padded = np.zeros((self._limit, _DIGEST_SIZE), np.uint8)
        padded[: len(found)] = np.frombuffer(b"".join(found), np.uint8).reshape(-1, _DIGEST_SIZE)
        everywhere = np.asarray(multihost_utils.process_allgather(padded)).reshape(-1, _DIGEST_SIZE)
        with self._lock:
            self._digests |= {row.tobytes() for row in everywhere if row.any()}
            if self.count > self._limit:
                raise EcaJaxError(f"records cannot be read, each process names its own; {self._too_many(self.count)}")

    def _too_many(self, count: int) -> str:
        return (
            f"{count} bad so far, data.max_bad allows {self._limit}: mend or remove what is bad, "
            f"or train with --data.max-bad {count} or more"
        )
