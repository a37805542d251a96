"""What the gate alone decides."""

import asyncio
import time

from jaxrec.serving.gate import Health


def test_a_pause_is_no_overload_and_a_loop_that_stays_behind_is() -> None:
    async def main() -> None:
        health = Health()
        watch = asyncio.create_task(health.watch(0.001))
        await asyncio.sleep(0.05)
        time.sleep(0.3)
        await asyncio.sleep(0.005)
        assert health.lag < 0.1
        for _ in range(8):
            time.sleep(0.15)
            for _ in range(3):  # turns of the loop that a timer takes to wake who waits for it
                await asyncio.sleep(0)
        assert health.lag > 0.1
        await asyncio.sleep(0.1)
        assert health.lag < 0.1
        watch.cancel()

    asyncio.run(main())
