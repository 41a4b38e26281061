"""Places go to the heaviest of those that wait, and none is lost."""

import asyncio

from benchmark.executors.slots import Slots


def test_the_heaviest_goes_next_and_the_first_among_equals() -> None:
    went: list[str] = []

    async def go(slots: Slots, name: str, weight: float) -> None:
        async with slots.place(weight):
            went.append(name)
            await asyncio.sleep(0)

    async def all_of_them() -> None:
        slots = Slots(1)
        works = [("a", 1.0), ("b", 1.0), ("c", 5.0), ("d", 1.0), ("e", 9.0)]
        await asyncio.gather(*(go(slots, name, weight) for name, weight in works))

    asyncio.run(all_of_them())
    assert went == ["a", "e", "c", "b", "d"]


def test_a_place_that_nobody_waits_for_any_more_goes_on() -> None:
    async def given_up() -> int:
        slots, held, done = Slots(1), asyncio.Event(), 0

        async def hold() -> None:
            async with slots.place(0):
                await held.wait()

        async def pass_through() -> None:
            nonlocal done
            async with slots.place(0):
                done += 1

        first = asyncio.ensure_future(hold())
        await asyncio.sleep(0)
        waiting = [asyncio.ensure_future(pass_through()) for _ in range(4)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        held.set()
        # One is given up when it is its turn already.
        await asyncio.sleep(0)
        waiting[1].cancel()
        await asyncio.gather(first, *waiting, return_exceptions=True)
        await pass_through()
        return done

    assert asyncio.run(given_up()) >= 3
