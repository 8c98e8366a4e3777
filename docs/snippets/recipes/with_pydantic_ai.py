from pydantic_ai import Agent
from pydantic_ai.ui.ag_ui import AGUIAdapter
from pydantic_ai.ui.vercel_ai import VercelAIAdapter

from livepush_asgi.contrib.starlette import run_response
from livepush_asgi.dialects import ag_ui, ai_sdk, parsed

agent = Agent("test")  # A model without a network. Take "openai:gpt-5", or another.


async def for_use_chat(push, request):
    adapter = await VercelAIAdapter.from_request(request, agent=agent, sdk_version=7)
    question = adapter.run_input.messages[-1]
    run = push.run(f"answer-{question.id}", dialect=ai_sdk())
    await run.start(parsed(adapter.encode_stream(adapter.run_stream())))
    return await run_response(push, request, run)


async def for_ag_ui(push, request):
    adapter = await AGUIAdapter.from_request(request, agent=agent)
    # The adapter makes RUN_STARTED and RUN_FINISHED itself.
    run = push.run(adapter.run_input.run_id, dialect=ag_ui(own_start_and_end=True))
    await run.start(parsed(adapter.encode_stream(adapter.run_stream())))
    return await run_response(push, request, run)
