"""When a mirror or recovery will be over, told by how fast it was lately. Pure; times are monotonic ns."""

from collections import deque

from replicator import limits


def work_of(files: int, size: int) -> int:
    """Files and bytes as one measure: a file costs as much as so many bytes, however small it is."""
    return size + files * limits.FILE_WORK_BYTES


class Estimate:
    """Work is told in any measure. Rests that its share of the time asks for are part of it."""

    def __init__(self, now_ns: int) -> None:
        self._marks: deque[tuple[int, int]] = deque([(now_ns, 0)])  # (when, work done by then), oldest first

    def begin_anew(self, now_ns: int, done: int) -> None:
        """From now on it goes faster or slower than before."""
        self._marks = deque([(now_ns, done)])

    def remaining_s(self, now_ns: int, done: int, total: int) -> float | None:
        """Until everything is done at the rate of the last minute; None if nothing has moved in it."""
        marks = self._marks
        if now_ns - marks[-1][0] >= limits.ESTIMATE_MARK_NS:
            marks.append((now_ns, done))
            while now_ns - marks[0][0] > limits.ESTIMATE_WINDOW_NS and len(marks) > 2:
                marks.popleft()
        since_ns, before = marks[0]
        if done >= total:
            return 0.0
        if done <= before or now_ns <= since_ns:
            return None
        return (total - done) / ((done - before) / (now_ns - since_ns)) / 1e9
