"""The simulator's invoice: what each call took, by the id under which it was made."""

from collections.abc import Mapping, Sequence

import aiohttp
import msgspec
from yarl import URL

from service.domain.generation import Usage
from service.errors import UpstreamUnavailable

TIMEOUT_S = 5.0


class _Call(msgspec.Struct):
    client_request_id: str
    model: str | None
    input_tokens: int
    output_tokens_delivered: int
    open: bool


_DECODER = msgspec.json.Decoder(list[_Call])


class SimulatorInvoice:
    """Obeys :class:`service.engine.invoices.Invoice`."""

    def __init__(self, *, provider: str, base_url: str) -> None:
        self._provider = provider
        self._url = URL(base_url).with_path("/ledger")

    async def took(self, call_ids: Sequence[str]) -> Mapping[str, tuple[str, Usage] | None]:
        """See :class:`service.engine.invoices.Invoice`."""
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session,
                session.get(self._url.with_query(client_request_id=",".join(call_ids))) as response,
            ):
                response.raise_for_status()
                calls = _DECODER.decode(await response.read())
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError) as error:
            raise UpstreamUnavailable(
                f"the invoice cannot be read ({type(error).__name__})", provider=self._provider
            ) from error
        return {
            call.client_request_id: None
            if call.open
            else (call.model or "", Usage(call.input_tokens, call.output_tokens_delivered))
            for call in calls
        }
