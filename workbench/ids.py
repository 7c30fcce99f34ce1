"""Ids that sort by the time they were made (UUID version 7, RFC 9562), and clocks as text."""

from __future__ import annotations

import os
import threading
import time
from datetime import UTC, datetime

_lock = threading.Lock()
_last = 0


def new_id() -> str:
    """Return a new 32-character hexadecimal UUIDv7; later ids of one process sort after earlier ones."""
    global _last
    with _lock:
        stamp = max(time.time_ns() // 250, _last + 1)  # 250 ns ticks: 48 bits of ms and 12 of sub-ms
        _last = stamp
    ms, sub = divmod(stamp, 4000)
    rand = int.from_bytes(os.urandom(8), "big") & ((1 << 62) - 1)
    value = (ms & ((1 << 48) - 1)) << 80 | 0x7 << 76 | sub << 64 | 0b10 << 62 | rand
    return f"{value:032x}"


def now() -> str:
    """Return the present moment as ISO 8601 text in UTC with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
