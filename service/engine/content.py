"""What was asked and answered, for the log of keys whose settings want it there; nobody else's is looked at."""

from service.domain.generation import Chunk, Completion, GenerationRequest

CONTENT_MAX = 16_384
"""Characters of a prompt, and of an answer, that a log line takes: collectors cut lines of more than some 64 KiB."""


class Content:
    """The texts of one generation, each up to :data:`CONTENT_MAX`; of several answers the first."""

    def __init__(self, asked: GenerationRequest) -> None:
        self._asked = asked
        self._pieces: list[str] = []
        self._length = 0

    def add(self, chunk: Chunk) -> None:
        """Take a piece of a stream."""
        for delta in chunk.deltas:
            if delta.choice == 0 and delta.text and self._length <= CONTENT_MAX:
                self._pieces.append(delta.text)
                self._length += len(delta.text)

    def answered(self, completion: Completion) -> None:
        """Take a whole answer."""
        self._pieces = [completion.choices[0].text]

    def fields(self) -> dict[str, object]:
        """Return the fields of the log line; ``content_cut`` where a text was longer."""
        left = CONTENT_MAX
        prompt = []
        is_cut = False
        for message in self._asked.messages:
            text = message.text
            is_cut = is_cut or len(text) > left
            prompt.append({"role": message.role, "text": text[:left]})
            left = max(0, left - len(text))
        answer = "".join(self._pieces)
        is_cut = is_cut or len(answer) > CONTENT_MAX
        return {"prompt": prompt, "answer": answer[:CONTENT_MAX], **({"content_cut": True} if is_cut else {})}
