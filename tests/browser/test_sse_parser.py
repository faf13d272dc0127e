"""The page's own reader of server-sent events, run in the browser that ships the reference one."""

import base64
import json
from typing import Final

import pytest

from tests.browser.playground_page import Playground

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

STREAMS: Final[dict[str, str]] = {
    "line_ends_of_each_kind": "data: lf\n\ndata: cr\r\rdata: crlf\r\n\r\ndata: mixed\r\n\rdata: last\n\n",
    "byte_order_mark_once": "\ufeffdata: a\n\ndata: \ufeffkept\n\n",
    "second_byte_order_mark_spoils_the_field": "\ufeff\ufeffdata: lost\n\ndata: b\n\n",
    "comments_and_unknown_fields": ": keep-alive\n\n:data: no\nfoo: bar\ndata: yes\n:\n\n",
    "several_data_lines": "data: a\ndata:\ndata: b\n\ndata\n\ndata:\ndata:\n\n",
    "one_space_is_taken": "data:none\n\ndata: one\n\ndata:  two\n\ndata:\ttab\n\n",
    "named_events": "event: usage\ndata: {}\n\ndata: unnamed again\n\nevent: dropped\n\ndata: x\nevent:\n\n",
    "ids": "id: 1\ndata: a\n\ndata: b\n\nid: no\0null\ndata: c\n\nid\ndata: d\n\nretry: 10x\nretry: 3000\ndata: e\n\n",
    "other_separators_are_text": "data: a\u2028b\u2029c\u0085d\x0be\x0cf\n\n",
    "emoji_and_colons": "data: 👩‍👩‍👧: é\ndata:: x\n\n",
    "unfinished_event_is_dropped": "data: whole\n\ndata: not\ndata: whole\n",
}

READ_BOTH = """async ([encoded, types]) => {
  const { readEvents } = await import("/playground/sse-parser.js");
  const bytes = Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0));
  const read = async (pieces) => {
    const events = [];
    const body = new ReadableStream({
      start(controller) {
        for (const piece of pieces) if (piece.length > 0) controller.enqueue(piece);
        controller.close();
      },
    });
    for await (const event of readEvents(body))
      events.push([event.type, event.data, event.lastEventId]);
    return JSON.stringify(events);
  };
  const cuts = await Promise.all(
    Array.from(bytes, (_, at) => read([bytes.subarray(0, at), bytes.subarray(at)])),
  );
  const single = await read(Array.from(bytes, (_, at) => bytes.subarray(at, at + 1)));
  const native = await new Promise((resolve) => {
    const events = [];
    const source = new EventSource("/stream-under-test");
    for (const type of types)
      source.addEventListener(type, (event) => events.push([event.type, event.data, event.lastEventId]));
    source.onerror = () => { source.close(); resolve(JSON.stringify(events)); };
  });
  return { native, ours: [...new Set([single, ...cuts])] };
}"""
"""Read the bytes with our parser, cut at every place and into single bytes, and with the browser's EventSource."""


@pytest.mark.parametrize("name", STREAMS)
async def test_any_cut_reads_as_eventsource_reads_it(playground: Playground, name: str) -> None:
    body = STREAMS[name].encode()
    await playground.page.route(
        "**/stream-under-test", lambda route: route.fulfill(content_type="text/event-stream", body=body)
    )
    result = await playground.page.evaluate(
        READ_BOTH, [base64.b64encode(body).decode(), ["message", "usage", "dropped"]]
    )

    assert result["ours"] == [result["native"]]
    assert json.loads(result["native"])
