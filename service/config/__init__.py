"""All settings, in sections, and how they are read; opens nothing but the files they name, and knows no other room.

Sources, strongest first: command line, environment (``LLM_API_`` and ``__`` between levels), the YAML file named by
``LLM_API_CONFIG``, the vendors' conventional names (``OPENAI_API_KEY`` and the like), defaults.
"""

from service.config.keys import digest_of, fits_a_header, read_keys_file
from service.config.printing import effective_yaml, json_schema, reference_table
from service.config.problems import ConfigError, Problem
from service.config.profiles import (
    Installed,
    is_loopback,
    unpriced,
    user_cache_dir,
    with_profile_defaults,
)
from service.config.sections import (
    AdmissionSettings,
    AuthSettings,
    BreakerSettings,
    CorsSettings,
    DrainSettings,
    EmbeddedSettings,
    HedgingSettings,
    JobSettings,
    KeySettings,
    LimitSettings,
    ModelSettings,
    PriceSettings,
    Profile,
    ProviderKind,
    ProviderSettings,
    RateSettings,
    ReadinessSettings,
    RedisSettings,
    ResilienceSettings,
    RetrySettings,
    RouteSettings,
    Section,
    ServerSettings,
    Settings,
    StreamSettings,
    TimeoutSettings,
)
from service.config.sources import load_settings

__all__ = [
    "AdmissionSettings",
    "AuthSettings",
    "BreakerSettings",
    "ConfigError",
    "CorsSettings",
    "DrainSettings",
    "EmbeddedSettings",
    "HedgingSettings",
    "Installed",
    "JobSettings",
    "KeySettings",
    "LimitSettings",
    "ModelSettings",
    "PriceSettings",
    "Problem",
    "Profile",
    "ProviderKind",
    "ProviderSettings",
    "RateSettings",
    "ReadinessSettings",
    "RedisSettings",
    "ResilienceSettings",
    "RetrySettings",
    "RouteSettings",
    "Section",
    "ServerSettings",
    "Settings",
    "StreamSettings",
    "TimeoutSettings",
    "digest_of",
    "effective_yaml",
    "fits_a_header",
    "is_loopback",
    "json_schema",
    "load_settings",
    "read_keys_file",
    "reference_table",
    "unpriced",
    "user_cache_dir",
    "with_profile_defaults",
]
