from app import answer, push


async def work(id, question):
    async with push.lifespan():
        run = push.run(id)
        status = await run.status()
        if status is not None and status.state == "lost":
            # Another worker was killed. This one begins again, and readers get its output alone.
            await run.start(answer(question), restart=True)
        else:
            await run.start(answer(question))
        return await run.wait()
