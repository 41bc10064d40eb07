"""Change streams."""

import time
from concurrent.futures import ThreadPoolExecutor

from bson import Int64

from harness import check, same


@check
def change_stream(s):
    c = s.collection("change_stream")
    with c.watch(max_await_time_ms=500) as stream, ThreadPoolExecutor(1) as pool:

        def read():
            seen, deadline = [], time.monotonic() + 20
            while len(seen) < 20 and time.monotonic() < deadline:
                change = stream.try_next()
                if change:
                    seen.append(change)
            return seen

        cursor_id = s.view.cursor_id
        s.view.get_more.clear()
        reading = pool.submit(read)
        assert s.view.get_more.wait(10), "the stream does not wait"
        for i in range(20):
            c.insert_one({"_id": i})
        seen = reading.result()
    same([change["fullDocument"]["_id"] for change in seen], list(range(20)), "inserts seen")
    s.gone(c, cursor_id)
    with c.watch(resume_after=seen[9]["_id"]) as stream:
        same([next(stream)["documentKey"]["_id"] for _ in range(10)], list(range(10, 20)), "inserts after resuming")


def next_changes(stream, count):
    """So many ids, or what has come after 20 s."""
    seen, deadline = [], time.monotonic() + 20
    while len(seen) < count and time.monotonic() < deadline:
        change = stream.try_next()
        if change:
            seen.append(change["documentKey"]["_id"])
    return seen


@check
def change_stream_resume(s):
    c = s.collection("change_stream_resume")
    with s.view.sent("aggregate") as sent, c.watch(max_await_time_ms=500, batch_size=5) as stream:
        # motor opens it with the first look.
        same(stream.try_next(), None, "before all changes")
        for round in range(3):
            first = 10 * round
            c.insert_many([{"_id": i} for i in range(first, first + 8)])
            same(next_changes(stream, 4), list(range(first, first + 4)), "before the cursor is killed")
            s.db.command({"killCursors": c.name, "cursors": [Int64(s.view.cursor_id)]})
            c.insert_many([{"_id": i} for i in range(first + 8, first + 10)])
            same(next_changes(stream, 6), list(range(first + 4, first + 10)), "after the cursor was killed")
        same(stream.try_next(), None, "after all changes")
        resumed = [key in command["pipeline"][0]["$changeStream"] for command in sent for key in ("resumeAfter",)]
    same(resumed, [False, True, True, True], "streams opened with a token")


@check
def change_stream_many(s):
    collections = [s.collection(f"change_stream_{i}") for i in range(8)]
    streams = [c.watch(max_await_time_ms=500) for c in collections]
    try:
        with ThreadPoolExecutor(8) as pool:
            for seen in pool.map(lambda stream: stream.try_next(), streams):
                same(seen, None, "before all changes")
            reading = [pool.submit(next_changes, stream, 20) for stream in streams]
            for n in range(20):
                for i, c in enumerate(collections):
                    c.insert_one({"_id": f"{i}:{n}"})
            for i, read in enumerate(reading):
                same(read.result(), [f"{i}:{n}" for n in range(20)], f"changes in stream {i}")
    finally:
        for stream in streams:
            stream.close()
