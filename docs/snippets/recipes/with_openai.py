from openai import AsyncOpenAI

from livepush_asgi.dialects import ai_sdk, openai

client = AsyncOpenAI()  # Or base_url="http://localhost:11434/v1", for what else speaks this protocol.


async def ask(question):
    messages = [{"role": "user", "content": question}]
    return await client.chat.completions.create(model="gpt-5", messages=messages, stream=True)


async def chunks(question):
    # A run that is cancelled closes this generator, and `async with` the connection to the model.
    async with await ask(question) as stream:
        async for chunk in stream:
            yield chunk


async def pieces(question):
    async with await ask(question) as stream:
        async for chunk in stream:
            if chunk.choices:
                yield chunk.choices[0].delta.content or ""


async def start_for_openai_clients(push, id, question):
    return await push.run(id, dialect=openai()).start(chunks(question))


async def start_for_use_chat(push, id, question):
    dialect = ai_sdk()
    return await push.run(id, dialect=dialect).start(dialect.text(pieces(question)))
