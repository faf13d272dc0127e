"""A provider's keys: taken in turn, read again when their files change, left alone while refused or limited."""

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from service.config.keys import fits_a_header
from service.config.watch import Version, version_of
from service.domain.clock import Clock
from service.errors import UpstreamError, UpstreamMisconfigured, UpstreamThrottled, mildest
from service.providers.allowance import RESOURCES, Allowance, Left, Mark, Resource
from service.providers.base import ProviderKey, any_key

logger = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0
"""How long a change of a key file may go unnoticed; a stat for each call would be a system call on the hot path."""

REFUSED_S: Mapping[str, float] = {"key": 5.0, "funds": 60.0}
"""Seconds for which a key is left alone after its first refusal; then one call tries it, and each further refusal
doubles the time. A vendor's authentication may fail for moments; an account is filled up by hand."""
REFUSED_MAX_S = 600.0
THROTTLED_S = 1.0
"""The same after a 429 that does not say for how long."""
THROTTLED_MAX_S = 60.0
"""For how long a 429 is believed: the vendor's counter may be set back earlier than it said."""
MAX_MODELS = 256
"""How many models' limits are remembered for a key; callers may choose names."""
TELL_S = 1.0
"""How old what is told of allowances may be; counting them for each call would be the largest part of its cost."""
FINGERPRINT_DIGITS = 12

MAX_HEADERS = 64
"""For how many keys headers are remembered; far more than a ring has, so that only replaced ones are forgotten."""


class _KeyFile:
    """One key in one file.

    A file that cannot be read, or holds no key, keeps its last one: it may be in the middle of its replacement.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version: Version | None = None
        self._told = False
        self._is_usable = True
        """Whether what was read in this version can be used."""
        self.key: str | None = None
        self.is_good = True
        """Whether the file as it was last seen holds :attr:`key`."""

    def refresh(self) -> None:
        """Read the file again if it is another one than the last time."""
        try:
            version = version_of(self._path)
            if version == self._version:
                self.is_good = self._is_usable
                return
            key = self._path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            self.is_good = False
            if not self._told:
                logger.warning("key file %s cannot be read: %s", self._path, type(exc).__name__)
            self._told = True
            return
        self._version = version
        self._told = False
        self.is_good = self._is_usable = fits_a_header(key)
        if self.is_good:
            self.key = key
        else:
            reason = "holds more than one key of visible ASCII characters" if key else "is empty"
            logger.warning("key file %s %s", self._path, reason)


@dataclass(slots=True, eq=False)
class _Standing:
    """One key, and what was heard of it."""

    key: ProviderKey
    tried_again_at: float | None = None
    """When a refused key may be tried; None for one that is accepted, or has not been used."""
    refusal: UpstreamMisconfigured | None = None
    """The last one."""
    refused_s: float = 0.0
    """For how long it is left alone now."""
    is_tried: bool = False
    """Whether a call was let through to see if it is accepted again."""
    throttled_until: dict[str, float] = field(default_factory=dict)
    """By upstream model: vendors limit each on its own."""
    allowances: dict[str, Allowance] = field(default_factory=dict)
    """By upstream model, too."""

    def allowance(self, upstream_model: str, now: float) -> Allowance:
        """Return what is known of a model's limits; made for a model that is asked for the first time."""
        found = self.allowances.get(upstream_model)
        if found is None:
            if len(self.allowances) >= MAX_MODELS:
                # Names that callers made up are never heard of.
                self.allowances = {name: known for name, known in self.allowances.items() if known.is_known(now)}
                if len(self.allowances) >= MAX_MODELS:
                    del self.allowances[next(iter(self.allowances))]
            found = self.allowances[upstream_model] = Allowance()
        return found


class KeyRing:
    """Gives out keys in turn, but for those that are refused (dead for every model) or limited (for one model).

    Limited are those that the provider refused a call with, and those of which its headers say that nothing is left.

    A key that was replaced in its file is another key, about which nothing bad is known.
    """

    def __init__(
        self,
        *,
        provider: str,
        keys: Sequence[SecretStr],
        files: Sequence[Path],
        clock: Clock,
        forgiving: bool = False,
        on_dead: Callable[[int], None] | None = None,
        on_left: Callable[[Resource, float | None], None] | None = None,
        on_files: Callable[[bool], None] | None = None,
    ) -> None:
        """``forgiving`` leaves no key alone; ``on_dead`` is told how many are dead whenever that changes.

        ``on_files`` is told, whenever the files were looked at, whether all of them hold the key that is in use.

        ``on_left`` is told, once a second at most, of each limit that the provider tells of, which part is left: by its
        last words, and for the key and the model that have the least; None when the last of these words is over.
        """
        self._provider = provider
        self._given = tuple(key.get_secret_value() for key in keys)
        self._files = tuple(_KeyFile(path) for path in files)
        self._clock = clock
        self._forgiving = forgiving
        self._on_dead = on_dead
        self._on_left = on_left
        self._on_files = on_files
        self._next_tell = -math.inf
        self._told: set[Resource] = set()
        """What ``on_left`` was told a part of."""
        self._dead = 0
        self._turn = -1
        """The place of the key that was given out last."""
        self._next_check = -math.inf
        self._standings = {secret: _standing(secret) for secret in (self._given or (() if files else (None,)))}
        self._in_turn = tuple(self._standings.values())

    def take(
        self, upstream_model: str, admits: Callable[[ProviderKey], bool] = any_key, *, tokens: int = 0
    ) -> ProviderKey | None:
        """See :class:`service.providers.base.KeyPool`."""
        now = self._clock.monotonic()
        if self._files and now >= self._next_check:
            self._follow_files(now)
        if not self._in_turn:
            raise UpstreamMisconfigured(
                "no key file of the provider holds a key that can be used", provider=self._provider
            )
        wait_s = math.inf
        barred = False
        first, count = self._turn + 1, len(self._in_turn)
        for place in range(first, first + count):
            standing = self._in_turn[place % count]
            blocked_s = _blocked_s(standing, upstream_model, now, tokens=tokens)
            if blocked_s:
                wait_s = min(wait_s, blocked_s)
            elif admits(standing.key):
                if standing.tried_again_at is not None:
                    # The others do not wait for what this call finds.
                    standing.tried_again_at = now + standing.refused_s
                    standing.is_tried = True
                if not self._forgiving:
                    standing.allowance(upstream_model, now).begin(tokens, now)
                self._turn = place % count
                return standing.key
            else:
                barred = True
        if wait_s < math.inf:
            raise UpstreamThrottled(
                "the provider is limiting our requests", provider=self._provider, retry_after_s=wait_s
            )
        if barred:
            return None
        raise self._all_dead()

    def wait_s(self, upstream_model: str, *, tokens: int = 0, keep: float = 0.0) -> float:
        """See :class:`service.providers.base.KeyPool`."""
        now = self._clock.monotonic()
        wait_s = math.inf
        for standing in self._in_turn:
            blocked_s = _blocked_s(standing, upstream_model, now, tokens=tokens, keep=keep)
            if not blocked_s:
                return 0.0
            wait_s = min(wait_s, blocked_s)
        return wait_s if wait_s < math.inf else 0.0

    def give_back(self, key: ProviderKey, upstream_model: str, *, tokens: int = 0) -> None:
        """See :class:`service.providers.base.KeyPool`."""
        standing = self._standings.get(key.secret)
        if standing is None or self._forgiving:
            return
        now = self._clock.monotonic()
        if standing.is_tried:
            standing.is_tried = False
            standing.tried_again_at = now
        allowance = standing.allowances.get(upstream_model)
        if allowance is not None:
            allowance.give_back(tokens, now)
        if self._in_turn[self._turn % len(self._in_turn)] is standing:
            self._turn -= 1

    def all_refused(self) -> bool:
        """See :class:`service.providers.base.KeyPool`. A forgiving ring can tell only where it has no more than one."""
        if self._forgiving:
            return len(self._in_turn) <= 1
        return all(standing.tried_again_at is not None for standing in self._in_turn)

    def retire(self) -> None:
        """See :class:`service.providers.base.KeyPool`."""
        if self._on_dead is not None:
            self._on_dead(0)
        if self._on_files is not None:
            self._on_files(True)  # noqa: FBT003 - a callback has no names
        if self._on_left is not None:
            for resource in self._told:
                self._on_left(resource, None)
        self._on_dead = self._on_left = self._on_files = None

    def mark(self, key: ProviderKey, upstream_model: str) -> Mark | None:
        """Remember that a call is sent now, for :meth:`hear`; None where nobody wants to."""
        standing = self._standings.get(key.secret)
        allowance = None if standing is None else standing.allowances.get(upstream_model)
        return None if allowance is None else allowance.mark(self._clock.monotonic())

    def hear(self, mark: Mark, found: tuple[Left, ...]) -> None:
        """Take note of what the provider says is left, in the headers of an answer to the call that was marked."""
        now = self._clock.monotonic()
        mark.allowance.hear(found, mark, now)
        if self._on_left is not None and now >= self._next_tell:
            self._next_tell = now + TELL_S
            self._tell_left(self._on_left, now)

    def tell_left(self) -> None:
        """Tell what is left also while no answer comes: what was said is over with the vendor's window."""
        if self._on_left is not None:
            self._tell_left(self._on_left, self._clock.monotonic())

    def note(self, key: ProviderKey, upstream_model: str, error: UpstreamError) -> None:
        """Take note of how a call with a key failed."""
        standing = self._standings.get(key.secret)
        if standing is None or self._forgiving:
            return
        now = self._clock.monotonic()
        if isinstance(error, UpstreamThrottled):
            until = standing.throttled_until
            if len(until) >= MAX_MODELS:
                until.clear()
            wait_s = THROTTLED_S if error.retry_after_s is None else error.retry_after_s
            # Answers overtake each other, and each of a vendor's limits has a time of its own: the longest counts.
            until[upstream_model] = max(until.get(upstream_model, now), now + min(wait_s, THROTTLED_MAX_S))
        elif isinstance(error, UpstreamMisconfigured) and error.refuses_key:
            self._refused(standing, error, now)

    def accepted(self, key: ProviderKey) -> None:
        """Take note that the provider took a key."""
        standing = self._standings.get(key.secret)
        if standing is not None and standing.tried_again_at is not None:
            standing.tried_again_at = None
            standing.is_tried = False
            logger.info("provider key accepted again", extra=self._told_of(standing))
            self._count_dead()

    def _refused(self, standing: _Standing, error: UpstreamMisconfigured, now: float) -> None:
        # It may have been replaced in this very moment: the same request goes on with the new one.
        self._next_check = -math.inf
        if standing.tried_again_at is None:
            standing.refused_s = REFUSED_S[error.refused]
            logger.warning(
                "provider key refused",
                extra={**self._told_of(standing), "reason": error.upstream_code or error.refused},
            )
        elif standing.is_tried:
            standing.refused_s = min(standing.refused_s * 2, REFUSED_MAX_S)
        else:
            return  # a call that began before the first refusal
        standing.is_tried = False
        standing.refusal = error
        standing.tried_again_at = now + standing.refused_s
        self._count_dead()

    def _all_dead(self) -> UpstreamMisconfigured:
        refusal = mildest([standing.refusal for standing in self._in_turn if standing.refusal is not None])
        return UpstreamMisconfigured(
            f"the provider refuses all of our keys ({refusal.upstream_code or refusal.refused})",
            provider=self._provider,
            upstream_status=refusal.upstream_status,
            upstream_code=refusal.upstream_code,
            refused=refusal.refused,
        )

    def _told_of(self, standing: _Standing) -> dict[str, str]:
        return {"provider": self._provider, "key": standing.key.fingerprint}

    def _count_dead(self) -> None:
        dead = sum(standing.tried_again_at is not None for standing in self._in_turn)
        if dead != self._dead:
            self._dead = dead
            if self._on_dead is not None:
                self._on_dead(dead)

    def _tell_left(self, on_left: Callable[[Resource, float | None], None], now: float) -> None:
        known = [allowance.ratios(now) for standing in self._in_turn for allowance in standing.allowances.values()]
        for resource in RESOURCES:
            ratios = [ratio[resource] for ratio in known if resource in ratio]
            if ratios:
                self._told.add(resource)
                on_left(resource, min(ratios))
            elif resource in self._told:
                self._told.discard(resource)
                on_left(resource, None)

    def _follow_files(self, now: float) -> None:
        self._next_check = now + CHECK_INTERVAL_S
        for file in self._files:
            file.refresh()
        if self._on_files is not None:
            self._on_files(all(file.is_good for file in self._files))
        secrets = dict.fromkeys((*self._given, *(file.key for file in self._files if file.key is not None)))
        if secrets.keys() != self._standings.keys():
            self._standings = {secret: self._standings.get(secret) or _standing(secret) for secret in secrets}
            self._in_turn = tuple(self._standings.values())
            self._count_dead()


def _blocked_s(standing: _Standing, upstream_model: str, now: float, *, tokens: int, keep: float = 0.0) -> float:
    """Return for how long a key must not be used for a model: 0, a time, or for ever as far as this call goes."""
    if standing.tried_again_at is not None and standing.tried_again_at > now:
        return math.inf
    throttled_s = max(0.0, standing.throttled_until.get(upstream_model, now) - now)
    allowance = standing.allowances.get(upstream_model)
    return throttled_s if allowance is None else max(throttled_s, allowance.wait_s(tokens, keep, now))


def _standing(secret: str | None) -> _Standing:
    digits = "none" if secret is None else hashlib.sha256(secret.encode()).hexdigest()[:FINGERPRINT_DIGITS]
    return _Standing(ProviderKey(secret, digits))


class SdkHeaders:
    """The headers that an official SDK would send with a key, made once for each key."""

    def __init__(self, headers_for: Callable[[str | None], Mapping[str, object]]) -> None:
        """``headers_for`` asks the SDK; what it marks as left out is no text."""
        self._headers_for = headers_for
        self._made: dict[str | None, Mapping[str, str]] = {}

    def __call__(self, key: ProviderKey) -> Mapping[str, str]:
        """Return the headers of a call with a key."""
        headers = self._made.get(key.secret)
        if headers is None:
            made = self._headers_for(key.secret)
            headers = {name: value for name, value in made.items() if isinstance(value, str)}
            if len(self._made) >= MAX_HEADERS:
                self._made.clear()
            self._made[key.secret] = headers
        return headers
