from app import answer, push


async def work(id, question):
    async with push.lifespan():
        # Another worker may be at it, or have been killed after so many words.
        return await push.run(id).finish(lambda given: answer(question, given))
