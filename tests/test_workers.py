"""Work in pieces: in order, given up at once, and out of the way of what somebody waits for."""

import threading
import time

import pytest
import torch

from core import workers


def test_results_come_in_order_from_threads_with_one_torch_thread_each():
    def piece(number: int) -> tuple[int, int]:
        time.sleep(0.002 * (number % 3))
        return number, torch.get_num_threads()

    found = list(workers.each(piece, range(30)))
    assert found == [(number, 1) for number in range(30)]


def test_pieces_that_have_not_begun_when_the_iterator_is_closed_never_do():
    begun = []
    pieces = workers.each(lambda number: begun.append(number) or time.sleep(0.01), range(1000))
    next(pieces)
    pieces.close()
    time.sleep(0.1)
    assert len(begun) <= 1 + 3 * workers.COUNT


def test_an_error_in_a_piece_reaches_whoever_asked():
    def piece(number: int) -> int:
        return 1 // (3 - number)

    with pytest.raises(ZeroDivisionError):
        list(workers.each(piece, range(10)))


def test_work_in_the_background_waits_while_somebody_waits_for_other_work():
    done: list[int] = []
    urgent = workers.each(lambda number: number, range(3))
    next(urgent)  # under way, not finished

    def survey() -> None:
        with workers.background():
            done.extend(workers.each(lambda number: number, range(5)))

    thread = threading.Thread(target=survey)
    thread.start()
    time.sleep(0.1)
    assert not done
    assert list(urgent) == [1, 2]
    thread.join(timeout=10)
    assert done == [0, 1, 2, 3, 4]


def test_what_a_thread_hands_over_after_its_background_work_is_awaited_again():
    with workers.background():
        assert list(workers.each(lambda number: number, range(3))) == [0, 1, 2]
    urgent = workers.each(lambda number: number, range(2))
    next(urgent)
    assert workers._awaited == 1
    urgent.close()
    assert workers._awaited == 0
