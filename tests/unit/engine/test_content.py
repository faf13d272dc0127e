"""How much of a generation's texts a log line takes."""

from service.domain.generation import Chunk, Delta, GenerationRequest, Message
from service.engine.content import CONTENT_MAX, Content


def asked(*texts: str) -> Content:
    return Content(GenerationRequest(model="m", messages=tuple(Message.of_text("user", text) for text in texts)))


def test_short_texts_are_told_whole() -> None:
    content = asked("Hi", "there")
    content.add(Chunk(deltas=(Delta(text="Good "), Delta(choice=1, text="another"))))
    content.add(Chunk(deltas=(Delta(text="day"),)))
    prompt = [{"role": "user", "text": "Hi"}, {"role": "user", "text": "there"}]
    assert content.fields() == {"prompt": prompt, "answer": "Good day"}


def test_long_texts_are_cut_and_said_to_be() -> None:
    content = asked("x" * (CONTENT_MAX - 1), "yz", "never")
    fields = content.fields()
    assert fields["content_cut"] is True
    assert [len(message["text"]) for message in fields["prompt"]] == [CONTENT_MAX - 1, 1, 0]  # type: ignore[attr-defined]
    content = asked("Hi")
    for _ in range(CONTENT_MAX):
        content.add(Chunk(deltas=(Delta(text="abc"),)))
    assert content.fields()["content_cut"] is True
    assert content.fields()["answer"] == ("abc" * CONTENT_MAX)[:CONTENT_MAX]
    assert len(content._pieces) <= CONTENT_MAX / 3 + 1, "what is not told is not kept"


def test_as_long_as_can_be_is_not_cut() -> None:
    content = asked("x" * CONTENT_MAX)
    content.add(Chunk(deltas=(Delta(text="a" * CONTENT_MAX),)))
    assert "content_cut" not in content.fields()
