"""Server-sent events to clients that read, and to one that does not."""

import asyncio

import pytest
from aiohttp import ClientSession, web

from inflight.openai.sse import EventStream


async def served(handler, ask):
    """Runs ask(port) against a server with this one handler."""
    application = web.Application()
    application.router.add_get("/", handler)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return await ask(site._server.sockets[0].getsockname()[1])
    finally:
        await runner.cleanup()


def test_events():
    async def handler(request):
        events = EventStream(request)
        await events.begin()
        await events.send([{"text": "é\n"}, {"n": 1}])
        await events.send([])
        await events.end()
        return events.response

    async def ask(port):
        async with ClientSession() as session, session.get(f"http://127.0.0.1:{port}/") as answer:
            return answer.content_type, await answer.text()

    wanted = 'data: {"text":"é\\n"}\n\ndata: {"n":1}\n\ndata: [DONE]\n\n'
    assert asyncio.run(served(handler, ask)) == ("text/event-stream", wanted)


def test_a_client_that_takes_nothing_is_given_up():
    ended: asyncio.Future

    async def handler(request):
        events = EventStream(request, patience_s=0.1)
        await events.begin()
        try:
            while True:
                await events.send([{"text": "x" * 2**20}])
        except ConnectionError as error:
            ended.set_result(error)
            raise

    async def ask(port):
        nonlocal ended
        ended = asyncio.get_running_loop().create_future()
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**10)  # reads no more than this
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            return await asyncio.wait_for(ended, 30)
        finally:
            writer.close()

    assert "took nothing for" in str(asyncio.run(served(handler, ask)))


def test_one_that_has_gone_is_an_error():
    class Gone:
        @staticmethod
        def is_closing():
            return True

    class Request:
        transport = Gone()

    with pytest.raises(ConnectionError):
        asyncio.run(EventStream(Request()).send([{}]))
