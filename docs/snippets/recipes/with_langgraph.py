from contextlib import aclosing

from langgraph.graph import START, MessagesState, StateGraph

from livepush_asgi.dialects import ai_sdk


def make_graph(model):
    async def answer(state):
        return {"messages": [await model.ainvoke(state["messages"])]}

    return StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer").compile()


async def pieces(graph, question):
    messages = {"messages": [{"role": "user", "content": question}]}
    async with aclosing(graph.astream(messages, stream_mode="messages")) as stream:
        async for message, _ in stream:
            yield message.text


async def start(push, graph, id, question):
    dialect = ai_sdk()
    return await push.run(id, dialect=dialect).start(dialect.text(pieces(graph, question)))
