"""Ctrl-C at every line of code that a piece of work executes."""

import sys


def interrupted_at_each_line(work, place):
    """Do some work again and again, interrupted at its first, second, ... line in the files of `place`.

    Yields the file and the line after each, and None in the end, when nothing has interrupted it.
    """
    number = 0
    while True:
        number += 1
        count, where = 0, None

        def of_a_line(frame, event, _, number=number):
            nonlocal count, where
            if event == "line":
                count += 1
                if count == number:
                    where = f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"
                    raise KeyboardInterrupt
            return of_a_line

        before = sys.gettrace()
        sys.settrace(lambda frame, *_, line=of_a_line: line if place in frame.f_code.co_filename else None)
        try:
            work()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        yield where
        if where is None:
            return
