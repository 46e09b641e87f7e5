"""Grading beside a search that goes on."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from restmcts.tasks.grade import Grader
from restmcts.types import Tree

OnTree = Callable[[Tree, bool], None]
"""called with every tree that is ready (stored ones first) and whether its answer is right; from any thread"""
_BACKLOG = 4096
"""trees that may wait to be graded; beyond that the search waits, for they are held in memory"""


class LiveGrader:
    """Grades final answers in a thread of its own while the search goes on.

    A symbolic comparison may take seconds; on the event loop it would hold up every open tree.
    """

    def __init__(self, grader: Grader, on_tree: OnTree | None) -> None:
        self._grader, self._on_tree = grader, on_tree
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grade")
        self._futures: deque[Future[None]] = deque()
        self._stopped = threading.Event()

    def __enter__(self) -> LiveGrader:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._stopped.set()
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            for future in self._futures:
                future.result()

    def add(self, tree: Tree, on_tree: OnTree | None = None) -> None:
        """Have a tree graded, and `on_tree` called, by default the one for all trees."""
        if (told := on_tree or self._on_tree) is not None:
            self._futures.append(self._pool.submit(self._grade, tree, told))
            while self._futures and (self._futures[0].done() or len(self._futures) > _BACKLOG):
                self._futures.popleft().result()

    def _grade(self, tree: Tree, on_tree: OnTree) -> None:
        if self._stopped.is_set():
            return
        known = tree.problem.answer is not None and tree.final_answer is not None
        right = known and self._grader.grade_many([(tree.problem, str(tree.final_answer))])[0]
        on_tree(tree, right)
