"""The ids of leases: one of a kind in every process, and ascending within it."""

import subprocess
import sys
import textwrap

from livepush_asgi import MemorySlotCap

KEY = "tenant"


async def test_the_leases_of_a_process_ascend_and_no_two_are_alike() -> None:
    cap = MemorySlotCap(5000)
    ids = [(await cap.acquire_lease(KEY)).id for _ in range(5000)]
    assert ids == sorted(set(ids))
    assert {len(id_) for id_ in ids} == {32}


def test_a_forked_process_takes_other_leases() -> None:
    code = """
    import asyncio, os
    from livepush_asgi import MemorySlotCap
    async def main():
        return (await MemorySlotCap(2).acquire_lease("key")).id
    os.fork()
    os.write(1, asyncio.run(main()).encode() + b"\\n")
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ids = process.stdout.read().split()
    assert len(set(ids)) == 2
