"""The providers of a process by name, which can be replaced while calls run on the ones before."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Self

from typing_extensions import override

from service.config import ProviderSettings, Settings
from service.domain.clock import Clock, Deadline
from service.domain.generation import Chunk, Completion, EmbeddingRequest, EmbeddingResult, GenerationRequest
from service.errors import UpstreamError, UpstreamMisconfigured, UpstreamTimeout, UpstreamUnavailable
from service.providers.base import KeyPool, Provider, ProviderKey

_APPLIED_ELSEWHERE = frozenset({"limits", "retries"})
"""Settings for which a provider need not be opened anew: whoever asks it goes by them."""
ALL_OF_ITS_TIME = 0.9
"""Which part of ``timeouts_s.total`` a call has had at least, if that ended it: some of it is over before it begins."""
Observer = Callable[[str, UpstreamError | None, float], None]
"""Is told how a call ended: the provider's name, the failure if it was one, and when it began (monotonic seconds)."""
ProviderOpener = Callable[[str, ProviderSettings], AbstractAsyncContextManager[Provider]]


class _Opened:
    """One provider as opened with certain settings, and how many calls run on it."""

    def __init__(self, provider: Provider, settings: ProviderSettings, stack: AsyncExitStack) -> None:
        self.provider = provider
        self.settings = settings
        self._stack = stack
        self._calls = 0
        self._closable = asyncio.Event()

    def enter(self) -> None:
        self._calls += 1
        self._closable.clear()

    def leave(self) -> None:
        self._calls -= 1
        if not self._calls:
            self._closable.set()

    async def close(self) -> None:
        await self._stack.aclose()

    async def close_when_idle(self) -> None:
        """Close it once the last call that began on it is over."""
        if self._calls:
            await self._closable.wait()
        await self.close()

    def hurry(self) -> None:
        """Close it with the calls that run."""
        self._closable.set()


class _Member:
    """What stands behind a name, now."""

    def __init__(self, name: str, opened: _Opened) -> None:
        self.name = name
        self.opened: _Opened | None = opened

    def enter(self) -> _Opened:
        """Begin a call on what stands there now, whatever comes to stand there while it runs."""
        opened = self.now()
        opened.enter()
        return opened

    def now(self) -> _Opened:
        if self.opened is None:
            raise UpstreamUnavailable("the provider was taken out of the configuration", provider=self.name)
        return self.opened


class _Slot:
    """Obeys :class:`service.providers.base.Provider`, on behalf of what stands behind its name at each call."""

    def __init__(self, member: _Member, observe: Observer | None, clock: Clock) -> None:
        self._member = member
        self._observe = observe
        self._clock = clock

    @property
    def name(self) -> str:
        return self._member.name

    @property
    def keys(self) -> KeyPool:
        return self._member.now().provider.keys

    async def complete(
        self, request: GenerationRequest, *, upstream_model: str, deadline: Deadline, key: ProviderKey | None = None
    ) -> Completion:
        with self._call(deadline) as provider:
            return await provider.complete(request, upstream_model=upstream_model, deadline=deadline, key=key)

    async def embed(
        self, request: EmbeddingRequest, *, upstream_model: str, deadline: Deadline, key: ProviderKey | None = None
    ) -> EmbeddingResult:
        with self._call(deadline) as provider:
            return await provider.embed(request, upstream_model=upstream_model, deadline=deadline, key=key)

    def stream(
        self, request: GenerationRequest, *, upstream_model: str, deadline: Deadline, key: ProviderKey | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Chunk]]:
        def ask(provider: Provider) -> AbstractAsyncContextManager[AsyncIterator[Chunk]]:
            return provider.stream(request, upstream_model=upstream_model, deadline=deadline, key=key)

        return _StreamedCall(self._call(deadline), ask)

    def _call(self, deadline: Deadline) -> "_Call":
        return _Call(self._member, self._observe, self._clock, deadline)


class _Call:
    """Holds the provider open for one call, and tells how it ended.

    A class, as is what streams: an idle stream would keep two generators for them, and each costs as much to begin and
    end as a dozen calls.
    """

    __slots__ = ("_began_at", "_clock", "_deadline", "_member", "_observe", "_opened")

    def __init__(self, member: _Member, observe: Observer | None, clock: Clock, deadline: Deadline) -> None:
        self._member = member
        self._observe = observe
        self._clock = clock
        self._deadline = deadline

    def __enter__(self) -> Provider:
        self._began_at = self._clock.monotonic()
        self._opened = self._member.enter()
        return self._opened.provider

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        tells = self._tells(error)
        self._opened.leave()
        if self._observe is not None and tells:
            self._observe(self._member.name, error if isinstance(error, UpstreamError) else None, self._began_at)

    def _tells(self, error: BaseException | None) -> bool:
        """Whether what ended the call says something of the provider."""
        if error is None:
            return True
        if not isinstance(error, UpstreamError):
            return False  # cancelled, or ended by a defect of ours
        if _refuses_one_key(error) and not self._opened.provider.keys.all_refused():
            return False
        # Who asked would not wait any longer.
        return not (isinstance(error, UpstreamTimeout) and self._had_less_time())

    def _had_less_time(self) -> bool:
        """Whether the call ended by its deadline, earlier than the provider's own timeouts end one."""
        if self._clock.monotonic() < self._deadline.at:
            return False
        total_s = self._opened.settings.timeouts_s.total
        return self._deadline.at - self._began_at < total_s * ALL_OF_ITS_TIME


class _StreamedCall:
    """A call whose answer is a stream: it is over when the stream is left, or was not opened."""

    __slots__ = ("_ask", "_call", "_stream")

    def __init__(
        self, call: _Call, ask: Callable[[Provider], AbstractAsyncContextManager[AsyncIterator[Chunk]]]
    ) -> None:
        self._call = call
        self._ask: Callable[[Provider], AbstractAsyncContextManager[AsyncIterator[Chunk]]] | None = ask

    async def __aenter__(self) -> AsyncIterator[Chunk]:
        ask, self._ask = self._ask, None  # it holds the prompt
        if ask is None:
            raise RuntimeError("a stream can be entered only once")
        provider = self._call.__enter__()
        try:
            self._stream = ask(provider)
            return await self._stream.__aenter__()
        except BaseException as error:
            self._call.__exit__(type(error), error, error.__traceback__)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        try:
            swallowed = await self._stream.__aexit__(kind, error, traceback)
        except BaseException as raised:
            self._call.__exit__(type(raised), raised, raised.__traceback__)
            raise
        self._call.__exit__(kind, None if swallowed else error, traceback)
        return swallowed


class ProviderPool(Mapping[str, Provider]):
    """All providers of a process. Who holds one of them calls, each time, what stands behind its name by then."""

    def __init__(self, opener: ProviderOpener, clock: Clock, *, on_gone: Callable[[str], object] | None = None) -> None:
        """``on_gone`` is told the name of a provider that is taken out."""
        self._opener = opener
        self._clock = clock
        self._on_gone = on_gone
        self._members: dict[str, _Member] = {}
        self._slots: dict[str, Provider] = {}
        self._retired: dict[asyncio.Task[None], _Opened] = {}
        """What was replaced, by the task that waits to close it."""
        self._observers: list[Observer] = []
        self._unobserved: dict[str, Provider] = {}

    @override
    def __getitem__(self, name: str) -> Provider:
        return self._slots[name]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    @override
    def __len__(self) -> int:
        return len(self._slots)

    @property
    def unobserved(self) -> Mapping[str, Provider]:
        """The same providers, as they stand, for calls that are no traffic."""
        return self._unobserved

    def observe(self, observer: Observer) -> None:
        """Have the end of each call told to ``observer`` too."""
        self._observers.append(observer)

    @asynccontextmanager
    async def opened(self, settings: Mapping[str, ProviderSettings]) -> AsyncIterator[Self]:
        """Open the providers of the settings; close what is open on leaving, whatever still runs."""
        (await self._prepared(settings))()
        try:
            yield self
        finally:
            for one in self._retired.values():
                one.hurry()
            await asyncio.gather(*self._retired, return_exceptions=True)
            for member in reversed(self._members.values()):
                if member.opened is not None:
                    await member.opened.close()

    async def prepare(self, settings: Settings) -> Callable[[], None]:
        """See ``Reloadable`` in ``service.reloading``: it must be the last part, since nothing closes what it opens.

        What is replaced is closed when the last call that began on it is over.
        """
        return await self._prepared(settings.providers)

    async def _prepared(self, settings: Mapping[str, ProviderSettings]) -> Callable[[], None]:
        opened: dict[str, _Opened] = {}
        try:
            for name, wanted in settings.items():
                member = self._members.get(name)
                if member is None or member.opened is None or _differ(member.opened.settings, wanted):
                    opened[name] = await self._open(name, wanted)
        except BaseException:
            for one in reversed(opened.values()):
                await one.close()
            raise
        return partial(self._replace, tuple(settings), opened)

    async def _open(self, name: str, settings: ProviderSettings) -> _Opened:
        stack = AsyncExitStack()
        provider = await stack.enter_async_context(self._opener(name, settings))
        return _Opened(provider, settings, stack)

    def _replace(self, names: tuple[str, ...], opened: Mapping[str, _Opened]) -> None:
        for name, one in opened.items():
            member = self._members.get(name)
            if member is None:
                self._members[name] = _Member(name, one)
            else:
                self._retire(member)
                member.opened = one
        for name, member in self._members.items():
            if name not in names and member.opened is not None:
                self._retire(member)
                member.opened = None
                if self._on_gone is not None:
                    self._on_gone(name)
        self._slots = {name: _Slot(self._members[name], self._tell, self._clock) for name in names}
        self._unobserved.clear()
        self._unobserved.update({name: _Slot(self._members[name], None, self._clock) for name in names})

    def _retire(self, member: _Member) -> None:
        if member.opened is not None:
            member.opened.provider.keys.retire()
            task = asyncio.create_task(member.opened.close_when_idle(), name=f"closing provider {member.name}")
            self._retired[task] = member.opened
            task.add_done_callback(lambda done: self._retired.pop(done, None))

    def _tell(self, name: str, error: UpstreamError | None, began_at: float) -> None:
        for observer in self._observers:
            observer(name, error, began_at)


def _refuses_one_key(error: UpstreamError) -> bool:
    return isinstance(error, UpstreamMisconfigured) and error.refuses_key


def _differ(one: ProviderSettings, other: ProviderSettings) -> bool:
    return any(
        getattr(one, name) != getattr(other, name)
        for name in ProviderSettings.model_fields
        if name not in _APPLIED_ELSEWHERE
    )
