"""The batcher: what travels together, in what order, and what happens to what cannot."""

import asyncio
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import Busy, DeadlineExceeded, Invalid, ModelFailed, Unavailable
from octavo.serving.batching import Batcher
from octavo.serving.gathering import BatchLimits, Entry, Piece, Ticket, gather


class Recorder:
    """A task that notes its batches, can be held, and can refuse a payload."""

    def __init__(self):
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()

    def run(self, pieces):
        self.gate.wait(10)
        self.batches.append([piece.payload for piece in pieces])
        if any(piece.payload == "poison" for piece in pieces):
            raise Invalid("poisoned", "test")
        if any(piece.payload == "crash" for piece in pieces):
            raise RuntimeError("internal detail")
        return [f"{piece.payload}!" for piece in pieces]


@pytest.fixture
def batcher():
    made = Batcher(threads=1, max_pending=100)
    yield made
    made.close()


def soon(seconds=10.0):
    return time.monotonic() + seconds


def make_queue(batcher, task, **limits):
    reports = []
    queue = batcher.queue("m", task, BatchLimits(**limits), reports.append)
    return queue, reports


async def test_results_come_back_in_the_order_of_the_pieces(batcher):
    queue, reports = make_queue(batcher, Recorder(), max_rows=2)
    pieces = [Piece(str(i), None, length=5) for i in range(7)]
    assert await batcher.run(queue, pieces, deadline=soon()) == [f"{i}!" for i in range(7)]
    assert sum(report.rows for report in reports) == 7
    assert max(report.rows for report in reports) <= 2


async def test_requests_that_wait_travel_together(batcher):
    task = Recorder()
    queue, _ = make_queue(batcher, task)
    task.gate.clear()
    first = asyncio.create_task(batcher.run(queue, [Piece("first")], deadline=soon()))
    await asyncio.sleep(0.05)
    rest = [asyncio.create_task(batcher.run(queue, [Piece(str(i))], deadline=soon())) for i in range(5)]
    await asyncio.sleep(0.05)
    task.gate.set()
    await asyncio.gather(first, *rest)
    assert task.batches == [["first"], ["0", "1", "2", "3", "4"]]


async def test_lengths_outside_the_window_and_other_shapes_never_meet(batcher):
    task = Recorder()
    queue, _ = make_queue(batcher, task, length_window=0.25, token_budget=10_000)
    task.gate.clear()
    waiting = [asyncio.create_task(batcher.run(queue, [Piece("hold")], deadline=soon()))]
    await asyncio.sleep(0.05)
    for payload, shape, length in [("a", 1, 100), ("b", 1, 500), ("c", 1, 120), ("d", 2, 100), ("e", 1, 480)]:
        waiting.append(asyncio.create_task(batcher.run(queue, [Piece(payload, shape, length)], deadline=soon())))
    await asyncio.sleep(0.05)
    task.gate.set()
    await asyncio.gather(*waiting)
    assert task.batches[1:] == [["a", "c"], ["b", "e"], ["d"]]


async def test_urgent_requests_go_first(batcher):
    task = Recorder()
    queue, _ = make_queue(batcher, task, max_rows=1)
    task.gate.clear()
    waiting = [asyncio.create_task(batcher.run(queue, [Piece("hold")], deadline=soon()))]
    await asyncio.sleep(0.05)
    for payload, priority in [("later", 2), ("urgent", 1), ("later too", 2), ("urgent too", 1)]:
        waiting.append(asyncio.create_task(batcher.run(queue, [Piece(payload)], priority=priority, deadline=soon())))
    await asyncio.sleep(0.05)
    task.gate.set()
    await asyncio.gather(*waiting)
    assert task.batches[1:] == [["urgent"], ["urgent too"], ["later"], ["later too"]]


async def test_priorities_of_one_model_do_not_starve_another(batcher):
    task = Recorder()
    urgent, _ = make_queue(batcher, task, max_rows=1)
    plain, _ = make_queue(batcher, task, max_rows=1)
    task.gate.clear()
    waiting = [asyncio.create_task(batcher.run(urgent, [Piece("hold")], deadline=soon()))]
    await asyncio.sleep(0.05)
    asked = [(plain, "a", 9), (urgent, "b", 2), (urgent, "c", 1), (plain, "d", 9), (urgent, "e", 1)]
    for queue, payload, priority in asked:
        waiting.append(asyncio.create_task(batcher.run(queue, [Piece(payload)], priority=priority, deadline=soon())))
        await asyncio.sleep(0.01)
    task.gate.set()
    await asyncio.gather(*waiting)
    assert task.batches[1:] == [["a"], ["c"], ["d"], ["e"], ["b"]]


async def test_a_model_in_other_processes_holds_up_nobody(batcher):
    hung, task = Recorder(), Recorder()
    hung.gate.clear()
    apart = batcher.queue("apart", hung, BatchLimits(concurrency=2), lambda report: None, apart=True)
    queue, _ = make_queue(batcher, task)
    waiting = [asyncio.create_task(batcher.run(apart, [Piece(f"h{n}", object())], deadline=soon())) for n in range(3)]
    await asyncio.sleep(0.05)
    assert await batcher.run(queue, [Piece("quick")], deadline=soon()) == ["quick!"]
    hung.gate.set()
    assert await asyncio.gather(*waiting) == [["h0!"], ["h1!"], ["h2!"]]
    threads = {thread.name for thread in threading.enumerate()}
    assert sum(name.startswith("octavo-wait-apart") for name in threads) == 2
    batcher.drop(apart)
    for _ in range(100):
        if not any(thread.name.startswith("octavo-wait-apart") for thread in threading.enumerate()):
            break
        await asyncio.sleep(0.02)
    else:
        pytest.fail("the crew of a model that left is still there")


async def test_a_bad_request_does_not_fail_its_neighbours(batcher):
    task = Recorder()
    queue, reports = make_queue(batcher, task)
    task.gate.clear()
    hold = asyncio.create_task(batcher.run(queue, [Piece("hold")], deadline=soon()))
    await asyncio.sleep(0.05)
    names = ["good", "poison", "crash", "fine"]
    waiting = [asyncio.create_task(batcher.run(queue, [Piece(name)], deadline=soon())) for name in names]
    await asyncio.sleep(0.05)
    task.gate.set()
    await hold
    good, poison, crash, fine = await asyncio.gather(*waiting, return_exceptions=True)
    assert (good, fine) == (["good!"], ["fine!"])
    assert isinstance(poison, Invalid)
    assert isinstance(crash, ModelFailed)
    assert "internal detail" not in str(crash)
    assert reports[-1].failed == 2


async def test_a_full_queue_refuses_and_says_when_to_come_back(batcher):
    task = Recorder()
    queue, _ = make_queue(batcher, task, max_queue=3)
    task.gate.clear()
    waiting = [asyncio.create_task(batcher.run(queue, [Piece(i)], deadline=soon())) for i in range(3)]
    await asyncio.sleep(0.05)
    with pytest.raises(Busy) as refused:
        await batcher.run(queue, [Piece("one more")], deadline=soon())
    assert refused.value.retry_after > 0
    task.gate.set()
    assert len(await asyncio.gather(*waiting)) == 3
    assert batcher.pending == 0


async def test_a_full_server_refuses():
    batcher = Batcher(threads=1, max_pending=2)
    task = Recorder()
    task.gate.clear()
    queue, _ = make_queue(batcher, task)
    waiting = [asyncio.create_task(batcher.run(queue, [Piece(i)], deadline=soon())) for i in range(2)]
    await asyncio.sleep(0.05)
    with pytest.raises(Unavailable):
        await batcher.run(queue, [Piece("one more")], deadline=soon())
    task.gate.set()
    await asyncio.gather(*waiting)
    batcher.close()


async def test_deadline_and_cancel_drop_work_that_has_not_started(batcher):
    task = Recorder()
    queue, _ = make_queue(batcher, task)
    task.gate.clear()
    hold = asyncio.create_task(batcher.run(queue, [Piece("hold")], deadline=soon()))
    await asyncio.sleep(0.05)
    late = asyncio.create_task(batcher.run(queue, [Piece("late")], deadline=soon(0.05)))
    gone = asyncio.create_task(batcher.run(queue, [Piece("gone")], deadline=soon()))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(DeadlineExceeded):
        await late
    task.gate.set()
    await hold
    await batcher.run(queue, [Piece("after")], deadline=soon())
    assert task.batches == [["hold"], ["after"]]


async def test_a_queue_that_is_dropped_tells_its_waiters(batcher):
    task = Recorder()
    queue, _ = make_queue(batcher, task)
    task.gate.clear()
    hold = asyncio.create_task(batcher.run(queue, [Piece("hold")], deadline=soon()))
    await asyncio.sleep(0.05)
    left = asyncio.create_task(batcher.run(queue, [Piece("left")], deadline=soon()))
    await asyncio.sleep(0.05)
    batcher.drop(queue)
    with pytest.raises(Unavailable):
        await left
    task.gate.set()
    assert await hold == ["hold!"]
    with pytest.raises(Unavailable):
        await batcher.run(queue, [Piece("too late")], deadline=soon())


async def test_delay_waits_for_company_only_until_enough_came(batcher):
    task = Recorder()
    queue, _ = make_queue(batcher, task, max_delay=5.0, preferred_rows=3)
    waiting = []
    for i in range(3):
        waiting.append(asyncio.create_task(batcher.run(queue, [Piece(i)], deadline=soon())))
        await asyncio.sleep(0.02)
    await asyncio.wait_for(asyncio.gather(*waiting), 3)
    assert task.batches == [[0, 1, 2]]


async def test_a_model_never_runs_more_batches_at_once_than_it_allows():
    batcher = Batcher(threads=4, max_pending=100)
    running, peak, lock = 0, 0, threading.Lock()

    class Slow:
        def run(self, pieces):
            nonlocal running, peak
            with lock:
                running += 1
                peak = max(peak, running)
            time.sleep(0.01)
            with lock:
                running -= 1
            return [None] * len(pieces)

    queue, _ = make_queue(batcher, Slow(), max_rows=1, concurrency=2)
    await asyncio.gather(*(batcher.run(queue, [Piece(i)], deadline=soon()) for i in range(12)))
    batcher.close()
    assert peak == 2


lengths = st.lists(st.integers(1, 512), min_size=1, max_size=60)


@given(
    lengths=lengths,
    budget=st.integers(1, 4096),
    rows=st.integers(1, 64),
    window=st.floats(0, 1),
    share=st.integers(1, 4),
)
def test_a_batch_keeps_its_limits_and_always_serves_the_oldest(lengths, budget, rows, window, share):
    loop = asyncio.new_event_loop()
    try:
        ticket = Ticket(len(lengths), loop.create_future())
        waiting = [Entry((0, i), 0.0, Piece(i, None, n), i, ticket) for i, n in enumerate(lengths)]
        limits = BatchLimits(max_rows=rows, token_budget=budget, length_window=window)
        batch = gather(waiting, limits, share)
    finally:
        loop.close()
    picked = [entry.piece.length for entry in batch]
    assert batch[0] is waiting[0]
    assert len(batch) <= rows
    assert len(batch) == 1 or len(picked) * max(picked) <= budget
    assert all(picked[0] * (1 - window) <= n <= picked[0] * (1 + window) for n in picked)
    assert [entry.rank for entry in batch] == sorted(entry.rank for entry in batch)
