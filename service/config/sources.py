"""Where settings come from: command line, environment, file, the vendors' conventional names; strongest first."""

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict
from typing_extensions import override

from service.config.checks import problems_between
from service.config.keys import keys_by_name
from service.config.problems import (
    ENV_DELIMITER,
    ENV_PREFIX,
    ConfigError,
    Problem,
    problems_in,
    shown,
    unknown_variable,
)
from service.config.profiles import Installed, missing_in_production, with_profile_defaults
from service.config.sections import Settings

Tree = dict[str, Any]
"""Settings before validation, nested as in the file."""

CONFIG_VARIABLE = f"{ENV_PREFIX}CONFIG"
"""Names the file."""


def load_settings(
    overrides: Mapping[str, Any],
    environ: Mapping[str, str],
    *,
    installed: Installed | None = None,
    takes_an_empty_file: bool = True,
) -> Settings:
    """Read, complete and check all settings; maps are merged across the sources, everything else is replaced.

    ``overrides`` comes from the command line, nested as in the file. Reads the files that the settings name, to see
    that they can be read, and nothing else. Raises :class:`ConfigError` with everything that is wrong; a file without
    a setting is wrong where one is being replaced, since somebody may be about to write it.
    """
    installed = installed or Installed.here()
    environ = {name: value for name, value in environ.items() if value != "" and not _is_service_link(name, value)}
    tree: Tree = {}
    file = _from_file(environ.get(CONFIG_VARIABLE), may_be_empty=takes_an_empty_file)
    for source in (file, _Environment(environ)(), dict(overrides)):
        tree = _merged(tree, _with_map_of_keys(source))
    tree = _with_conventional_names(tree, environ)
    problems = [unknown_variable(name) for name in environ if _is_unknown(name)]
    problems += missing_in_production(tree)
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        # `from None`: the original holds the input, secrets included.
        raise ConfigError(problems + problems_in(error)) from None
    settings = with_profile_defaults(settings, embedded_model=installed.embedded_model)
    named = {problem.setting for problem in problems}
    problems += [problem for problem in problems_between(settings, installed) if problem.setting not in named]
    if problems:
        raise ConfigError(problems)
    return settings


class _Readable(BaseSettings, Settings):
    """Tells pydantic-settings how our variables are named; never made."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter=ENV_DELIMITER)


class _Environment(EnvSettingsSource):
    """Reads the environment that it is given, not the process's, and leaves broken JSON to the validation."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        super().__init__(_Readable)

    @override
    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in self._environ.items()}

    @override
    def decode_complex_value(self, field_name: str, field: FieldInfo | None, value: Any) -> Any:
        # A list may also be a text with commas, and an error there must name the setting and hide what is secret:
        # both are the validation's work.
        if not (isinstance(value, str) and value.lstrip().startswith(("{", "["))):
            return value
        try:
            return super().decode_complex_value(field_name, field, value)  # type: ignore[arg-type] # None is checked for
        except ValueError:
            return value


class _NameTwiceError(yaml.constructor.ConstructorError):
    """A map names something twice."""


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, in which a name that stands twice is an error: the last would win in silence."""

    @override
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if len(set(names)) < len(names):
            raise _NameTwiceError(None, None, None, node.start_mark)
        return super().construct_mapping(node, deep=deep)


def _from_file(name: str | None, *, may_be_empty: bool) -> Tree:
    if name is None:
        return {}
    takes = "a YAML file with a map of settings"
    try:
        # The loader is a SafeLoader.
        tree = yaml.load(Path(name).read_text("utf-8"), _Loader)  # noqa: S506
    except yaml.MarkedYAMLError as error:
        # Only the place and the kind of mistake: the parser's own message quotes the line, which may hold a key.
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "it"
        what = "a name that stands twice" if isinstance(error, _NameTwiceError) else "what is not YAML"
        raise ConfigError([Problem(CONFIG_VARIABLE, f"{shown(name)}, with {what} at {where}", takes)]) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ConfigError([Problem(CONFIG_VARIABLE, f"{shown(name)}, which is not YAML in UTF-8", takes)]) from None
    except OSError as error:
        raise ConfigError([Problem(CONFIG_VARIABLE, f"{shown(name)} ({error.strerror})", takes)]) from None
    if tree is None:
        if not may_be_empty:
            raise ConfigError([Problem(CONFIG_VARIABLE, f"{shown(name)}, in which no setting stands", takes)])
        return {}
    if not isinstance(tree, dict):
        raise ConfigError([Problem(CONFIG_VARIABLE, f"{shown(name)}, which holds no map", takes)])
    return tree


def _merged(weaker: Tree, stronger: Tree) -> Tree:
    result = dict(weaker)
    for name, value in stronger.items():
        old = result.get(name)
        result[name] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _with_map_of_keys(tree: Tree) -> Tree:
    """Make callers' keys mergeable; what cannot be read stays as it is, for the validation to name."""
    auth = tree.get("auth")
    if not isinstance(auth, dict) or "keys" not in auth:
        return tree
    try:
        return {**tree, "auth": {**auth, "keys": keys_by_name(auth["keys"])}}
    except ValueError:
        return tree


_VENDORS = ("openai", "anthropic")


def _with_conventional_names(tree: Tree, environ: Mapping[str, str]) -> Tree:
    """Fill what is missing from ``OPENAI_API_KEY`` and the like."""
    weaker: Tree = {}
    providers = tree.get("providers", {})
    for vendor in _VENDORS:
        given = providers.get(vendor, {}) if isinstance(providers, dict) else None
        if not isinstance(given, dict) or given.get("kind", vendor) != vendor:
            continue
        found: Tree = {}
        if (key := environ.get(f"{vendor.upper()}_API_KEY")) and not (given.get("keys") or given.get("key_files")):
            found["keys"] = [key]
        if (url := environ.get(f"{vendor.upper()}_BASE_URL")) and not given.get("base_url"):
            found["base_url"] = url
        if found:
            weaker.setdefault("providers", {})[vendor] = {"kind": vendor, **found}
    redis = tree.get("redis", {})
    if (url := environ.get("REDIS_URL")) and isinstance(redis, dict) and not redis.get("url"):
        weaker["redis"] = {"url": url}
    # Only gaps were filled, so that either order of merging gives the same; this one keeps the file's order of names.
    return _merged(tree, weaker)


_SERVICE_LINK = re.compile(r"(.+_)?(SERVICE_(HOST|PORT(_.+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")


def _is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes made this variable for a Service that is called ``llm-api`` or ``llm-api-…``.

    https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
    """
    if not name.startswith(ENV_PREFIX):
        return False
    rest = name.removeprefix(ENV_PREFIX)
    return bool(_SERVICE_LINK.fullmatch(rest)) or (rest.endswith("PORT") and value.startswith(("tcp://", "udp://")))


def _is_unknown(name: str) -> bool:
    """Whether a variable has our prefix and belongs to no setting; below the first level the validation finds it."""
    if not name.upper().startswith(ENV_PREFIX) or name == CONFIG_VARIABLE:
        return False
    section = name[len(ENV_PREFIX) :].lower().split(ENV_DELIMITER)[0]
    return section not in Settings.model_fields
