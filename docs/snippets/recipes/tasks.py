import asyncio

from answers import URL, produce, producing
from celery import Celery

app = Celery("tasks", broker=URL)
# Seconds until a task of a dead machine is run again. A longer task is run twice, and its answer once.
app.conf.broker_transport_options = {"visibility_timeout": 300}
app.conf.worker_lost_wait = 1  # Seconds until a task of a dead process is.


async def work(id, question):
    async with producing() as push:
        return await produce(push, id, question)


@app.task(acks_late=True, reject_on_worker_lost=True, ignore_result=True)
def answer_question(id, question):
    asyncio.run(work(id, question))
