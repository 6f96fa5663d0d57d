"""The HTTP service: routes, checked bodies, whole and streamed answers, errors."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from aiohttp import web
from pydantic import ValidationError

from inflight.openai.chat_template import TemplateError
from inflight.openai.choice import Delta
from inflight.openai.engine import Engine
from inflight.openai.errors import SERVER, ApiError, from_validation, invalid
from inflight.openai.forms import ChatForm, CompletionForm, Form, usage_object
from inflight.openai.generation import Echo, Job, deltas, plan_job
from inflight.openai.model import ServedModel
from inflight.openai.requests import Body, ChatBody, CompletionBody
from inflight.openai.sse import EventStream, encode

log = logging.getLogger("inflight.openai")

MOST_BODY_BYTES = 32 * 2**20
BODY_PATIENCE_S = 60.0
GONE = 499  # in the log, as nginx has it: the client left before its answer ended

B = TypeVar("B", bound=Body)


class Service:
    """`engine` answers for the one model that is served."""

    def __init__(self, engine: Engine, model: ServedModel):
        self._engine = engine
        self._model = model

    def application(self) -> web.Application:
        app = web.Application(middlewares=[_answer_errors], client_max_size=MOST_BODY_BYTES)
        app.router.add_get("/health", self.health)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/v1/models/{name:.+}", self.one_model)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/completions", self.complete)
        return app

    async def health(self, request: web.Request) -> web.Response:
        """200 when the engine model takes requests, else 503."""
        ready = await self._engine.is_ready()
        return _json({"status": "ready" if ready else "the engine model is not ready"}, 200 if ready else 503)

    async def models(self, request: web.Request) -> web.Response:
        return _json({"object": "list", "data": [self._card(name) for name in self._model.names]})

    async def one_model(self, request: web.Request) -> web.Response:
        self._require_model(request.match_info["name"])
        return _json(self._card(request.match_info["name"]))

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request, ChatBody)
        prompt = await self._model.encode(self._rendered(body), add_special_tokens=False)
        job = plan_job(body, self._model, [prompt], (body.top_logprobs or 0) if body.logprobs else None)
        return await self._answer(request, body, job, ChatForm(body, self._model.tokenizer))

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request, CompletionBody)
        prompts = [await self._prompt(it, body) for it in body.prompt]
        echoes = [self._echo(*it, body) for it in zip(body.prompt, prompts, strict=True)] if body.echo else ()
        job = plan_job(body, self._model, prompts, body.logprobs, echoes)
        return await self._answer(request, body, job, CompletionForm(body, self._model.tokenizer))

    def _card(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._model.created, "owned_by": "inflight"}

    def _require_model(self, name: str) -> None:
        if name not in self._model.names:
            known = ", ".join(f"`{it}`" for it in self._model.names)
            text = f"The model `{name}` does not exist; this server has {known}"
            raise ApiError(404, text, param="model", code="model_not_found")

    async def _body(self, request: web.Request, kind: type[B]) -> B:
        try:
            data = await asyncio.wait_for(request.read(), BODY_PATIENCE_S)
            body = kind.model_validate_json(data)
        except (asyncio.TimeoutError, TimeoutError):  # two types before Python 3.11
            raise ApiError(408, f"the body did not arrive within {BODY_PATIENCE_S:.0f} s") from None
        except ValidationError as error:
            raise from_validation(error) from None
        self._require_model(body.model)
        body.require_supported()
        return body

    def _rendered(self, body: ChatBody) -> str:
        if self._model.template is None:
            raise invalid("this model has no chat template; use /v1/completions, or start with --chat-template FILE")
        try:
            messages = [message.for_template() for message in body.messages]
            return self._model.template.render(messages, body.add_generation_prompt, body.chat_template_kwargs)
        except (TemplateError, ValueError) as error:
            raise invalid(str(error), "messages") from None

    async def _prompt(self, prompt: str | list[int], body: CompletionBody) -> list[int]:
        if isinstance(prompt, str):
            return await self._model.encode(prompt, body.add_special_tokens)
        for token in prompt:
            if not 0 <= token < self._model.vocabulary:
                raise invalid(f"token {token} is outside the vocabulary of {self._model.vocabulary} tokens", "prompt")
        return prompt

    def _echo(self, prompt: str | list[int], ids: list[int], body: CompletionBody) -> Echo:
        text = prompt if isinstance(prompt, str) else self._model.tokenizer.decode(ids)
        return Echo(text, body.logprobs, only=body.max_tokens == 0)

    async def _answer(self, request: web.Request, body: Body, job: Job, form: Form) -> web.StreamResponse:
        async with aclosing(deltas(self._engine, job)) as found:
            try:
                return await (_stream(request, found, job, form) if body.stream else _whole(found, job, form))
            finally:
                request["tokens"] = f"{job.prompt_tokens} prompt + {job.completion_tokens} completion tokens"


async def _whole(found: AsyncGenerator[Delta, None], job: Job, form: Form) -> web.Response:
    answers: dict[int, Delta] = {}
    async for delta in found:
        if delta.index in answers:
            answers[delta.index].extend(delta)
        else:
            answers[delta.index] = delta
    return _json(form.whole((answers[index] for index in sorted(answers)), _usage(job)))


async def _stream(request: web.Request, found: AsyncGenerator[Delta, None], job: Job, form: Form) -> web.StreamResponse:
    """A refusal comes before the first delta, and so as a status; a later error is an event."""
    first = await anext(found)
    events = EventStream(request)
    try:
        await events.begin()
        await events.send(form.chunks(first))
        await _send_rest(events, found, job, form)
        await events.end()
    except ConnectionError:
        request["status"] = GONE
    return events.response


async def _send_rest(events: EventStream, found: AsyncGenerator[Delta, None], job: Job, form: Form) -> None:
    try:
        async for delta in found:
            await events.send(form.chunks(delta))
        await events.send(form.last_chunks(_usage(job)))
    except ConnectionError:
        raise
    except ApiError as error:
        await events.send([error.body])
    except Exception:
        log.exception("a stream failed")
        await events.send([_failed().body])


def _failed() -> ApiError:
    return ApiError(500, "the server failed on this request", SERVER)


def _usage(job: Job) -> dict[str, int]:
    return usage_object(job.prompt_tokens, job.completion_tokens)


def _json(body: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(body=encode(body), status=status, content_type="application/json")


@web.middleware
async def _answer_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Errors in OpenAI's form, and one line of the log a request."""
    began, status = time.perf_counter(), GONE
    try:
        response = await _guarded(request, handler)
        status = request.get("status", response.status)
        return response
    finally:
        seconds = time.perf_counter() - began
        log.debug("%s %s %d %s %.3f s", request.method, request.path, status, request.get("tokens", "-"), seconds)


async def _guarded(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return _json(error.body, error.status)
    except web.HTTPNotFound:
        text = f"Unknown request URL: {request.method} {request.path}"
        return _json(ApiError(404, text, code="unknown_url").body, 404)
    except web.HTTPException as error:
        return _json(ApiError(error.status, error.text if error.status == 413 else error.reason).body, error.status)
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return _json(_failed().body, 500)
